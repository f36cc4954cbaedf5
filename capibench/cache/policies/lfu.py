"""Evict what was read least often, in a way that lets yesterday's favourites go.

LFU with dynamic ageing (LFU-DA: Dilley and Arlitt, "Improving proxy cache performance: analysis of
three replacement policies", IEEE Internet Computing 3(6), 1999, section "LFU with Dynamic Aging"):
at every access an entry's priority becomes its number of accesses plus the cache's age, and the age
is the priority of the last entry that was evicted. So what is new starts level with what leaves,
and old popularity is overtaken after as many evictions as it was worth. There is no parameter.

Accesses are counted while an entry is resident; ties leave in order of their last access.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.cache.policy import PolicyMemory


@dataclass
class Lfu:
    """Lists of keys by priority; O(1) amortised, because the age only rises and by no more than
    there were accesses."""

    memory: ClassVar[PolicyMemory] = PolicyMemory(160)  # lists by frequency

    _age: int = field(init=False, repr=False, compare=False)
    _accesses: dict[bytes, int] = field(init=False, repr=False, compare=False)
    _priority: dict[bytes, int] = field(init=False, repr=False, compare=False)
    _by_priority: dict[int, OrderedDict[bytes, None]] = field(init=False, repr=False, compare=False)
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._age = 0
        self._accesses = {}
        self._priority = {}
        self._by_priority = {}
        self._leaving = None

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._accesses[key] = 1
        self._enter(key, self._age + 1)

    def on_hit(self, key: bytes, now: float) -> None:
        accesses = self._accesses[key] + 1
        self._accesses[key] = accesses
        self._leave(key)
        self._enter(key, self._age + accesses)

    def on_remove(self, key: bytes) -> None:
        del self._accesses[key]
        priority = self._leave(key)
        if key == self._leaving:
            self._age = priority
            self._leaving = None

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        priority = self._age
        while priority not in self._by_priority:
            priority += 1
        self._leaving = next(iter(self._by_priority[priority]))
        return self._leaving

    def _enter(self, key: bytes, priority: int) -> None:
        self._priority[key] = priority
        keys = self._by_priority.get(priority)
        if keys is None:
            keys = self._by_priority[priority] = OrderedDict()
        keys[key] = None

    def _leave(self, key: bytes) -> int:
        priority = self._priority.pop(key)
        keys = self._by_priority[priority]
        del keys[key]
        if not keys:
            del self._by_priority[priority]
        return priority
