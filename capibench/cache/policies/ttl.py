"""Evict what goes stale first: what has little life left is worth the least, read or not.

It differs from LRU where types with different times to live share a tier (an old embedding with
hours left outlives a fresh model output), and in that a read does not save an entry: with one
time to live for everything it is first in, first out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from capibench.cache.tiers.expiry import ExpiryOrder


@dataclass
class Ttl:
    """Earliest expiry first; ties go by insertion. O(log n) amortised."""

    _order: ExpiryOrder = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._order = ExpiryOrder()

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._order.add(key, expires_s)

    def on_hit(self, key: bytes, now: float) -> None:
        """Nothing: being read does not lengthen a life."""

    def on_remove(self, key: bytes) -> None:
        self._order.discard(key)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        first = self._order.first()
        assert first is not None, "victim() of an empty tier"
        return first[0]
