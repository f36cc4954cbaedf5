"""How far a cache may leave LRU's contents so that it never hits much less than LRU: a ledger.

Tests on the past find out too late, and only by chance, that LRU does better. This keeps a bound
instead, on any stream whatever. Beside the cache runs its shadow: LRU of the same size, keys only.
Two figures follow exactly:

    debt     what LRU has hit so far, less what the cache has hit; negative while it is ahead
    at risk  what LRU holds and the cache does not: each is lost at most once

A budget bounds their sum, a share of all accesses so far. An eviction is free when it takes what
LRU does not hold any more. Any other adds one to what is at risk, and the cache may make it only
where the budget pays for it. So hits beyond LRU's buy freedom, and without them the cache stays as
near to LRU as it can still afford.

Theorem. With entries of one size that are never removed from outside, after every access
`hits of LRU - hits of the cache <= share * accesses`.
Proof. Let S be what LRU holds after an access and C what the cache holds, both full. Nothing but an
eviction raises debt + |S - C|: where both hit or both miss the debt stays, and S - C grows only by
what C evicts; where only LRU hits, the debt grows by one, and the key enters C and so leaves
S - C; where only the cache hits, the debt falls. An eviction can always be free: the key that
enters is in S and not yet in C, so that C, of the same size, holds one that is not in S. The
eviction that is not free is made only while the sum with it is within the budget, which never
shrinks. As |S - C| >= 0, the debt is within it too.

The idea is that of combining an advised policy with a classical one, so that bad advice costs
little (Blum, Burch, "On-line learning and the metrical task system problem", Machine Learning 39,
2000; Lykouris, Vassilvitskii, "Competitive caching with machine learned advice", Journal of the ACM
68(4), 2021; Wei, "Better and simpler learning-augmented online caching", APPROX 2020). Theirs
follow one policy or the other as a whole, and bound the ratio of misses to the optimum; here the
content may differ by any part, and the bound is on the difference of hits to LRU.

With entries of several sizes, or where worth is in seconds and changes, the same sums are kept and
the same rule is followed, but one entry of LRU's may have to go for several of the cache's: there
it is no theorem.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from capibench.cache.policy_parts.simulated import SimulatedTier

_COMPACT_FROM = 64
BOUND_ENTRY_BYTES = 700  # of RAM for each that the cache holds, measured with tracemalloc


class LruBound:
    """What the cache did is told to it; what the cache may evict is asked of it. O(1) per access,
    and O(log n) for each key that LRU drops and the cache keeps."""

    __slots__ = (
        "_all",
        "_at_risk",
        "_beyond",
        "_debt",
        "_due",
        "_heap",
        "_missing",
        "_num_added",
        "_shadow",
        "_share",
    )

    def __init__(self, lru: SimulatedTier, share: float, due: Callable[[bytes], float]) -> None:
        """`lru`: the shadow, empty and of the cache's size. `due`: of the keys that LRU does not
        hold, the one with the least is the first to go."""
        self._share = share
        self._due = due
        self._shadow = lru
        self._shadow.on_leave = self._left_shadow
        self._missing: dict[bytes, float] = {}  # in the shadow only: what a hit is worth
        self._beyond: dict[bytes, float] = {}  # in the cache only: when it is due
        self._heap: list[tuple[float, int, bytes]] = []  # of them, and of some that were
        self._num_added = 0  # to the heap; ties go by it
        self._all = 0.0  # worth of all accesses
        self._debt = 0.0
        self._at_risk = 0.0

    def hit(
        self, key: bytes, size: int, worth: float, cost_s: float, now: float, expires_s: float
    ) -> None:
        """The cache hit `key`."""
        self._all += worth
        if not self._shadow.access(key, size, cost_s, now, expires_s):
            self._debt -= worth
        self._beyond.pop(key, None)

    def stored(
        self, key: bytes, size: int, worth: float, cost_s: float, now: float, expires_s: float
    ) -> None:
        """The cache missed `key`, and holds it now."""
        self._all += worth
        self._at_risk -= self._missing.pop(key, 0.0)
        if self._shadow.access(key, size, cost_s, now, expires_s):
            self._debt += worth
        self._beyond.pop(key, None)

    def evicted(self, key: bytes, worth: float) -> None:
        """The cache evicted `key`."""
        if self._beyond.pop(key, None) is None:
            self._missing[key] = worth
            self._at_risk += worth

    def removed(self, key: bytes) -> None:
        """`key` left the cache because it was stale or wrong, as it would leave any cache."""
        if key in self._shadow:
            self._shadow.remove(key)
        self._beyond.pop(key, None)

    def is_paid(self, key: bytes, worth: float) -> bool:
        """Whether the cache may evict `key`."""
        if key in self._beyond:
            return True
        return self._debt + self._at_risk + worth <= self._share * self._all

    def first_beyond(self) -> bytes | None:
        """The key that the cache holds, and LRU does not, which is due first."""
        heap, beyond = self._heap, self._beyond
        while heap:
            due, _, key = heap[0]
            if beyond.get(key) != due:  # it left, or is in the shadow again
                heapq.heappop(heap)
            elif due == -math.inf and self._due(key) > due:  # nothing was known of it then
                heapq.heappop(heap)
                self._add(key)
            else:
                return key
        return None

    def rank_anew(self) -> None:
        """The order of what is due has changed."""
        self._heap.clear()
        for key in list(self._beyond):
            self._add(key)

    def _left_shadow(self, key: bytes) -> None:
        if key in self._missing:
            self._at_risk -= self._missing.pop(key)
        else:
            self._add(key)

    def _add(self, key: bytes) -> None:
        self._beyond[key] = due = self._due(key)
        self._num_added += 1
        heapq.heappush(self._heap, (due, self._num_added, key))
        if len(self._heap) > 2 * len(self._beyond) + _COMPACT_FROM:
            beyond = self._beyond
            self._heap[:] = [entry for entry in self._heap if beyond.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
