"""Evict what was not read for the longest time: the baseline that every other policy must beat."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Lru:
    """Least recently used, over a linked list: every operation is O(1)."""

    _order: OrderedDict[bytes, None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._order = OrderedDict()  # oldest first

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._order[key] = None

    def on_hit(self, key: bytes, now: float) -> None:
        self._order.move_to_end(key)

    def on_hits(self, keys: Sequence[bytes]) -> None:
        deque(map(self._order.move_to_end, keys), maxlen=0)  # a loop without the interpreter

    def on_remove(self, key: bytes) -> None:
        del self._order[key]

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        return next(iter(self._order))
