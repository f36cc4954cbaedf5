"""Keys in the order in which they go stale; for the tiers' clean-up and for the `ttl` policy."""

from __future__ import annotations

import heapq

_COMPACT_FROM = 64


class ExpiryOrder:
    """A binary heap with lazy deletion: what left stays in the heap until it comes to the top, or
    until it outnumbers what is there. Adding and removing cost O(log n) amortised; ties go by
    insertion."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, bytes]] = []
        self._live: dict[bytes, int] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return len(self._live)

    def add(self, key: bytes, expires_s: float) -> None:
        """`key` goes stale at `expires_s`; an earlier entry of the same key is forgotten."""
        self._num_added += 1
        self._live[key] = self._num_added
        heapq.heappush(self._heap, (expires_s, self._num_added, key))
        if len(self._heap) > 2 * len(self._live) + _COMPACT_FROM:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, key: bytes) -> None:
        """Forget `key`."""
        self._live.pop(key, None)

    def first(self) -> tuple[bytes, float] | None:
        """The key that goes stale first and when; None when there is none."""
        while self._heap:
            expires_s, added, key = self._heap[0]
            if self._live.get(key) == added:
                return key, expires_s
            heapq.heappop(self._heap)
        return None
