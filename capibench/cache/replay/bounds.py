"""What knows the future: the yardsticks beside every hit rate. They exist only here, never in runs.

    infinite     everything is kept until it goes stale
    belady       keeps what is asked for soonest; a policy, if one could see into the future
    most_hits    no policy hits more: Belady's hits with entries of one size that do not go stale,
                 and otherwise a relaxation, which allows more than any cache can do
    upper_bound  no policy gains more where hits differ in worth; always such a relaxation

Why they are bounds. An entry comes in only when its key is asked for, so a hit means that it was
held at each step since the access before: hits are intervals [access before, access), and no more
of them overlap than fit. For entries of one size the largest set of counted intervals is found by
dropping, whenever too many overlap, what ends last, which is Belady's rule; and a cache that knows
the future can hold just these and pass by all else, so that it is reached.

Only some accesses are counted, usually those after a warm-up. Belady over the whole stream is no
bound of those: for hits that do not count he forgoes some that do. So only intervals that end in a
counted hit are held. Of the warm-up that leaves one access to each key seen in it, from which any
set that fits may be held when counting begins: the bound is the exact optimum over everything that
a cache could hold then.

Where entries go stale or a key's size changes, what is held depends on when it was stored. The
relaxation lets an access hit while any earlier entry of its key would be fresh, and charges the
smallest size that the key has had and could still be stored with.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from capibench.cache.replay.trace import Floats, KeyTrace, Whole

Flags = npt.NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max


def infinite_hits(trace: KeyTrace) -> Flags:
    """Hits of a cache without end. Entries are stored when they miss and live from then on; where
    they go stale, that is no bound: an entry that is stored anew lives longer."""
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


def belady_hits(trace: KeyTrace, capacity_bytes: int, counted: Flags) -> Flags:
    """Which of the `counted` accesses hit in the clairvoyant cache (Belady, IBM Systems Journal
    5(2), 1966, section "MIN"), which may also pass an entry by, as policies with admission may."""
    following, times_s = _next_uses(trace.ids, counted).tolist(), trace.times_s.tolist()
    sizes = [1] * len(trace) if trace.sizes is None else trace.sizes.tolist()
    expires_s = [math.inf] * len(trace)
    if trace.ttls_s is not None:
        expires_s = (trace.times_s + trace.ttls_s).tolist()
    hits = np.zeros(len(trace), dtype=np.bool_)
    held: dict[int, tuple[int, float]] = {}  # by the access it is held for: size, expiry
    furthest: list[int] = []  # these accesses, negated; those that are past never come to the top
    num_bytes = 0
    for place, (next_use, *stored) in enumerate(zip(following, sizes, expires_s, strict=True)):
        size, fresh_until_s = stored
        if place in held:
            hits[place] = True
            size, fresh_until_s = held.pop(place)
            num_bytes -= size
        if next_use == NEVER or times_s[next_use] >= fresh_until_s or size > capacity_bytes:
            continue
        held[next_use] = (size, fresh_until_s)
        num_bytes += size
        heapq.heappush(furthest, -next_use)
        while num_bytes > capacity_bytes:
            num_bytes -= held.pop(-heapq.heappop(furthest))[0]
    return hits


def belady_is_best(trace: KeyTrace) -> bool:
    """Whether no policy hits more than Belady: one size, and nothing goes stale before the end."""
    lasts = trace.ttls_s is None or bool((trace.times_s + trace.ttls_s > trace.times_s[-1]).all())
    return _has_one_size(trace) and lasts


def most_hits(trace: KeyTrace, capacity_bytes: int, counted: Flags) -> int:
    """So many of the `counted` accesses any policy can hit, at most."""
    if _has_one_size(trace):
        return int(belady_hits(_relaxed(trace), capacity_bytes, counted).sum())
    most = upper_bound(trace, capacity_bytes, np.ones(len(trace)), counted)
    return math.floor(most + 1e-6)  # hits are whole; the margin is for a sum's rounding


def upper_bound(trace: KeyTrace, capacity_bytes: int, worth: Floats, counted: Flags) -> float:
    """The most that any policy can gain from `counted` accesses, each hit gaining its `worth`.

    Holding an entry over an interval takes its size for as many steps. No policy has more than
    capacity times number of steps, so the best use of that product, filled by worth per byte and
    step, bounds them all (Berger, Beckmann, Harchol-Balter, "Practical bounds on optimal caching
    with variable object sizes", SIGMETRICS 2018, section 5: PFOO-U's relaxation, there called
    PFOO-L because it bounds the misses from below).
    """
    relaxed = _relaxed(trace)
    following = _next_uses(relaxed.ids, counted)
    starts = np.flatnonzero(following != NEVER)
    ends = following[starts]
    sizes = np.ones(len(starts)) if relaxed.sizes is None else relaxed.sizes[starts].astype(float)
    fits = sizes <= capacity_bytes
    starts, ends, sizes = starts[fits], ends[fits], sizes[fits]
    begin = max(int(np.argmax(counted)) - 1, 0)  # what is held before counting begins is free
    space, gain = sizes * (ends - np.maximum(starts, begin)), worth[ends]
    order = np.argsort(-gain / space, kind="stable")
    space, gain = space[order], gain[order]
    left = float(capacity_bytes) * (len(trace) - 1 - begin) - (np.cumsum(space) - space)
    return float((gain * np.clip(left / space, 0.0, 1.0)).sum())


def _has_one_size(trace: KeyTrace) -> bool:
    return trace.sizes is None or bool((trace.sizes == trace.sizes[0]).all())


def _next_uses(ids: Whole, counted: Flags) -> Whole:
    """Position of the next access to the same key if that is counted, else `NEVER`."""
    order = np.argsort(ids, kind="stable")
    now, then = order[:-1], order[1:]
    useful = (ids[now] == ids[then]) & counted[then]
    following = np.full(len(ids), NEVER, dtype=np.int64)
    following[now[useful]] = then[useful]
    return following


def _relaxed(trace: KeyTrace) -> KeyTrace:
    """Whatever a policy can hit in `trace`, it can here, where nothing goes stale: an access that
    no earlier entry could serve begins a key of its own, and sizes are the smallest ones since."""
    ids, sizes = trace.ids, trace.sizes
    if trace.ttls_s is not None:
        order = np.argsort(ids, kind="stable")
        expires_s = pd.Series((trace.times_s + trace.ttls_s)[order])
        latest_s = expires_s.groupby(ids[order]).cummax().to_numpy()
        begins = np.full(len(ids), True)
        begins[1:] = (ids[order][1:] != ids[order][:-1]) | (
            trace.times_s[order][1:] >= latest_s[:-1]
        )
        ids = np.empty(len(order), dtype=np.int64)
        ids[order] = np.cumsum(begins)
    if sizes is not None:
        sizes = pd.Series(sizes).groupby(ids).cummin().to_numpy()
    return replace(trace, ids=ids, sizes=sizes, ttls_s=None)
