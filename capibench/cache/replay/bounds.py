"""What no policy can beat on a given stream: the yardsticks beside every hit rate.

    infinite      everything is kept: only first accesses, and stale ones, miss
    belady        evict (or do not keep) what is asked for furthest in the future
    upper_bound   for entries of unequal size or cost, where Belady is no bound

All know the future, so they exist only here and never in a run.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from capibench.cache.replay.trace import Floats, KeyTrace, Whole

Flags = npt.NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max


def next_uses(trace: KeyTrace) -> Whole:
    """Position of the next access to the same key that may still hit, or `NEVER`.

    An entry is stale a lifetime after it was stored; it is taken to have been stored at the access
    before, which is never too early, so that bounds stay bounds.
    """
    order = np.argsort(trace.ids, kind="stable")
    now, then = order[:-1], order[1:]
    useful = trace.ids[now] == trace.ids[then]
    if trace.ttls_s is not None:
        useful &= trace.times_s[then] < trace.times_s[now] + trace.ttls_s[now]
    following = np.full(len(trace), NEVER, dtype=np.int64)
    following[now[useful]] = then[useful]
    return following


def infinite_hits(trace: KeyTrace) -> Flags:
    """Hits of a cache without end. Entries are stored when they miss and live from then on."""
    seen = np.full(len(trace), True)
    seen[np.unique(trace.ids, return_index=True)[1]] = False
    if trace.ttls_s is None:
        return seen
    expires_s: dict[int, float] = {}
    for place, (key, now, ttl_s) in enumerate(
        zip(trace.ids.tolist(), trace.times_s.tolist(), trace.ttls_s.tolist(), strict=True)
    ):
        seen[place] = now < expires_s.get(key, -np.inf)
        if not seen[place]:
            expires_s[key] = now + ttl_s
    return seen


def belady_hits(trace: KeyTrace, capacity_bytes: int) -> Flags:
    """Hits of the clairvoyant cache (Belady, IBM Systems Journal 5(2), 1966, section "MIN").

    It may also pass an entry by, as policies with admission may; with entries of one size no policy
    has more hits. With unequal sizes it is a good policy and not a bound.
    """
    ids, following = trace.ids.tolist(), next_uses(trace).tolist()
    sizes = [1] * len(ids) if trace.sizes is None else trace.sizes.tolist()
    hits = np.zeros(len(ids), dtype=np.bool_)
    resident: dict[int, tuple[int, int]] = {}  # key → next use, size
    furthest: list[tuple[int, int]] = []  # (-next use, key); what was used since is out of date
    num_bytes = 0
    for place, (key, size, next_use) in enumerate(zip(ids, sizes, following, strict=True)):
        held = resident.pop(key, None)
        if held is not None:
            hits[place] = True
            size = held[1]
            num_bytes -= size
        if next_use == NEVER or size > capacity_bytes:
            continue
        while num_bytes + size > capacity_bytes:
            other_use, other = -furthest[0][0], furthest[0][1]
            other_held = resident.get(other)
            if other_held is not None and other_held[0] == other_use:
                if other_use <= next_use:
                    break
                del resident[other]
                num_bytes -= other_held[1]
            heapq.heappop(furthest)
        else:
            resident[key] = (next_use, size)
            num_bytes += size
            heapq.heappush(furthest, (-next_use, key))
    return hits


def upper_bound(trace: KeyTrace, capacity_bytes: int, worth: Floats, since: int) -> float:
    """The most that any policy can gain from accesses `since` on, each hit gaining its `worth`.

    Keeping an entry from one access to the next takes its size for as many steps. No policy has
    more than capacity times number of steps, so the best use of that product, filled by worth per
    byte and step, bounds them all (Berger, Beckmann, Harchol-Balter, "Practical bounds on optimal
    caching with variable object sizes", SIGMETRICS 2018, section 5: PFOO-U's relaxation, there
    called PFOO-L because it bounds the misses from below).
    """
    following = next_uses(trace)
    starts = np.flatnonzero(following != NEVER)
    ends = following[starts]
    sizes = np.ones(len(starts)) if trace.sizes is None else trace.sizes[starts].astype(float)
    counted = (ends >= since) & (sizes <= capacity_bytes)
    starts, ends, sizes = starts[counted], ends[counted], sizes[counted]
    space, gain = sizes * (ends - starts), worth[ends]
    order = np.argsort(-gain / space, kind="stable")
    space, gain = space[order], gain[order]
    left = float(capacity_bytes) * len(trace) - (np.cumsum(space) - space)
    return float((gain * np.clip(left / space, 0.0, 1.0)).sum())
