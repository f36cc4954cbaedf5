"""Evict what was not read for the longest time: the baseline that every other policy must beat."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Lru:
    """Least recently used, over a linked list: every operation is O(1)."""

    # Oldest first. A tier may keep its own values in it (`policy.LendsTable`).
    table: OrderedDict[bytes, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.table = OrderedDict()

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self.table.setdefault(key)

    def on_hit(self, key: bytes, now: float) -> None:
        self.table.move_to_end(key)

    def on_hits(self, keys: Sequence[bytes]) -> None:
        deque(map(self.table.move_to_end, keys), maxlen=0)  # a loop without the interpreter

    def on_remove(self, key: bytes) -> None:
        self.table.pop(key, None)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        return next(iter(self.table))
