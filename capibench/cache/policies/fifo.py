"""Evict what was stored first, read or not: no work on a hit, and the floor for the others.

Queue of Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems
Journal 5(2), 1966, class 1 (FIFO).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass
class Fifo:
    """First in, first out; every operation is O(1)."""

    # Not a dict: its first key is found by passing over the places of all deleted ones.
    _order: OrderedDict[bytes, None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._order = OrderedDict()  # oldest first

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._order[key] = None

    def on_hit(self, key: bytes, now: float) -> None:
        """Nothing: being read does not change when it came."""

    def on_remove(self, key: bytes) -> None:
        del self._order[key]

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        return next(iter(self._order))
