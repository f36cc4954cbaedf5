"""Balance recency against frequency by what was missed: no parameter, and quick where popularity
shifts.

ARC (Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, section
III.B, figure 4): T1 holds what was seen once, T2 what was seen again, B1 and B2 are ghosts of what
left them. A miss that B1 remembers says that T1 should be larger, one that B2 remembers says the
opposite; the target p of T1 follows.

Departures: everything is counted in bytes (a ghost hit moves p by the entry's size times the ratio
of the ghost lists), which is the paper's algorithm for entries of equal size; and entries may leave
by invalidation, so that the lists are trimmed to the paper's bounds (L1 at most one capacity, all
lists at most two) after an insertion, instead of relying on a full cache.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.cache.policy import PolicyMemory


class _Lru:
    """Keys with their sizes, least recently used first."""

    __slots__ = ("num_bytes", "sizes")

    def __init__(self) -> None:
        self.sizes: OrderedDict[bytes, int] = OrderedDict()
        self.num_bytes = 0

    def push(self, key: bytes, size: int) -> None:
        self.sizes[key] = size
        self.num_bytes += size

    def pop(self, key: bytes) -> int:
        size = self.sizes.pop(key)
        self.num_bytes -= size
        return size

    def pop_oldest(self) -> None:
        self.num_bytes -= self.sizes.popitem(last=False)[1]


@dataclass
class Arc:
    """Every operation is O(1), or O(1) per ghost that is forgotten."""

    memory: ClassVar[PolicyMemory] = PolicyMemory(64)  # ghosts with their keys

    _capacity: int = field(init=False, repr=False, compare=False)
    _target: float = field(init=False, repr=False, compare=False)  # p: bytes that T1 should have
    _t1: _Lru = field(init=False, repr=False, compare=False)
    _t2: _Lru = field(init=False, repr=False, compare=False)
    _b1: _Lru = field(init=False, repr=False, compare=False)
    _b2: _Lru = field(init=False, repr=False, compare=False)
    _incoming: bytes | None = field(init=False, repr=False, compare=False)
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._capacity = 0
        self._target = 0.0
        self._t1, self._t2, self._b1, self._b2 = _Lru(), _Lru(), _Lru(), _Lru()
        self._incoming = self._leaving = None

    def open(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        if key != self._incoming:
            self._learn(key, size)
        self._incoming = None
        if key in self._b1.sizes:  # case II
            self._b1.pop(key)
            self._t2.push(key, size)
        elif key in self._b2.sizes:  # case III
            self._b2.pop(key)
            self._t2.push(key, size)
        else:  # case IV
            self._t1.push(key, size)
        self._trim()

    def on_hit(self, key: bytes, now: float) -> None:  # case I
        t2 = self._t2
        if key in t2.sizes:
            t2.sizes.move_to_end(key)
        else:
            t2.push(key, self._t1.pop(key))

    def on_remove(self, key: bytes) -> None:
        was_evicted = key == self._leaving
        self._leaving = None
        queue, ghosts = (self._t1, self._b1) if key in self._t1.sizes else (self._t2, self._b2)
        size = queue.pop(key)
        if was_evicted:
            ghosts.push(key, size)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        self._incoming = key
        self._learn(key, size)
        return True

    def victim(self, now: float) -> bytes:  # REPLACE
        t1 = self._t1
        is_over = t1.num_bytes > self._target or (
            t1.num_bytes == self._target and self._incoming in self._b2.sizes
        )
        queue = t1 if t1.sizes and (is_over or not self._t2.sizes) else self._t2
        self._leaving = next(iter(queue.sizes))
        return self._leaving

    def _learn(self, key: bytes, size: int) -> None:
        b1, b2 = self._b1, self._b2
        if key in b1.sizes:
            step = size * max(1.0, b2.num_bytes / b1.num_bytes)
            self._target = min(self._target + step, float(self._capacity))
        elif key in b2.sizes:
            step = size * max(1.0, b1.num_bytes / b2.num_bytes)
            self._target = max(self._target - step, 0.0)

    def _trim(self) -> None:
        t1, b1, b2 = self._t1, self._b1, self._b2
        while b1.sizes and t1.num_bytes + b1.num_bytes > self._capacity:
            b1.pop_oldest()
        spare = 2 * self._capacity - t1.num_bytes - self._t2.num_bytes - b1.num_bytes
        while b2.sizes and b2.num_bytes > spare:
            b2.pop_oldest()
