"""Evict what saves the fewest seconds per byte: the policy for entries of unequal cost.

Greedy-Dual-Size with frequency (Cherkasova, "Improving WWW proxies performance with
Greedy-Dual-Size-Frequency caching policy", HP Labs report HPL-98-69R1, 1998, section 4): at every
access the priority of an entry becomes age + accesses * cost / size, where the age is the priority
of the last entry that was evicted (Cao and Irani 1997). Cost is the measured time of recomputing
the entry; with equal costs it is the paper's GDSF(1), which maximises the hit rate.

Accesses are counted while an entry is resident; ties leave in order of their last access.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.cache.policy import PolicyMemory

_COMPACT_FROM = 64


@dataclass
class Gdsf:
    """O(1) on a hit: priorities only rise, so that the heap may lag behind and is corrected when
    an old priority comes to its top; O(log n) amortised per eviction."""

    memory: ClassVar[PolicyMemory] = PolicyMemory(192)  # a heap that may hold as many that are gone

    _age: float = field(init=False, repr=False, compare=False)
    _num_accesses: int = field(init=False, repr=False, compare=False)
    # key → [priority, number of its last access, seconds per byte, accesses]
    _entries: dict[bytes, list[float]] = field(init=False, repr=False, compare=False)
    _heap: list[tuple[float, float, bytes]] = field(init=False, repr=False, compare=False)
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._age = 0.0
        self._num_accesses = 0
        self._entries = {}
        self._heap = []
        self._leaving = None

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._num_accesses += 1
        value = cost_s / max(size, 1)
        priority = self._age + value
        self._entries[key] = [priority, self._num_accesses, value, 1]
        heapq.heappush(self._heap, (priority, self._num_accesses, key))
        if len(self._heap) > 2 * len(self._entries) + _COMPACT_FROM:
            self._heap = [(entry[0], entry[1], key) for key, entry in self._entries.items()]
            heapq.heapify(self._heap)

    def on_hit(self, key: bytes, now: float) -> None:
        self._num_accesses += 1
        entry = self._entries[key]
        entry[3] += 1
        entry[0] = self._age + entry[3] * entry[2]
        entry[1] = self._num_accesses

    def on_remove(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        if key == self._leaving:
            self._age = entry[0]
            self._leaving = None

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        heap, entries = self._heap, self._entries
        while True:
            _, access, key = heap[0]
            entry = entries.get(key)
            if entry is None:
                heapq.heappop(heap)
            elif entry[1] == access:
                self._leaving = key
                return key
            else:
                heapq.heapreplace(heap, (entry[0], entry[1], key))
