"""Let most new entries pass through a small queue, because most are never read again.

S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
2023, section 4.1, algorithm 1): a small queue S for what is new, a main queue M that works like a
clock with two bits, and ghosts G of what left S. What was read more than once in S moves to M; what
returns while its ghost is there enters M at once.

Departures, all those of the authors' later code: M is served first when it is over its share (the
paper serves S when S is over its own); while nothing has been evicted yet, S does not grow past its
share; and the ghost of what comes in is taken out before what leaves is remembered. Sizes are
bytes; G remembers as many bytes as M may hold.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.cache.policy import PolicyMemory

_MAX_FREQUENCY = 3  # two bits


@dataclass
class S3Fifo:
    """O(1) on a hit; an eviction takes one step per moved entry, each of which hits have paid."""

    memory: ClassVar[PolicyMemory] = PolicyMemory(208)  # reads, and ghosts with their keys

    small_share: float  # of the tier's bytes
    promote_reads: int  # reads while in S that lead to M

    _small_bytes: int = field(init=False, repr=False, compare=False)  # S's share
    _main_bytes: int = field(init=False, repr=False, compare=False)  # M's share
    _ghost_capacity: int = field(init=False, repr=False, compare=False)
    _in_small: int = field(init=False, repr=False, compare=False)
    _in_main: int = field(init=False, repr=False, compare=False)
    _in_ghosts: int = field(init=False, repr=False, compare=False)
    _reads: dict[bytes, int] = field(init=False, repr=False, compare=False)
    _small: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)  # key → size
    _main: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)
    _ghosts: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)
    _has_evicted: bool = field(init=False, repr=False, compare=False)
    _incoming: bytes | None = field(init=False, repr=False, compare=False)
    _is_known: bool = field(init=False, repr=False, compare=False)  # it has a ghost
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.small_share < 1:
            raise ValueError(f"small_share: got {self.small_share}; expected between 0 and 1")
        if not 1 <= self.promote_reads <= _MAX_FREQUENCY:
            raise ValueError(f"promote_reads: got {self.promote_reads}; expected 1 to 3")
        self._small_bytes = self._main_bytes = self._ghost_capacity = 0
        self._in_small = self._in_main = self._in_ghosts = 0
        self._reads = {}
        self._small, self._main, self._ghosts = OrderedDict(), OrderedDict(), OrderedDict()
        self._has_evicted = False
        self._incoming = self._leaving = None
        self._is_known = False

    def open(self, capacity_bytes: int) -> None:
        self._small_bytes = int(capacity_bytes * self.small_share)
        self._main_bytes = capacity_bytes - self._small_bytes
        self._ghost_capacity = int(capacity_bytes * (1 - self.small_share))

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._reads[key] = 0
        if key != self._incoming:
            self._recall(key)
        self._incoming = None
        is_filling = not self._has_evicted and self._in_small >= self._small_bytes
        if self._is_known or is_filling:
            self._main[key] = size
            self._in_main += size
        else:
            self._small[key] = size
            self._in_small += size

    def on_hit(self, key: bytes, now: float) -> None:
        reads = self._reads[key]
        if reads < _MAX_FREQUENCY:
            self._reads[key] = reads + 1

    def on_remove(self, key: bytes) -> None:
        del self._reads[key]
        size = self._small.pop(key, None)
        if size is None:
            self._in_main -= self._main.pop(key)
        else:
            self._in_small -= size
            if key == self._leaving:
                self._remember(key, size)
        self._leaving = None

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        self._incoming = key
        self._recall(key)
        return True

    def victim(self, now: float) -> bytes:
        self._has_evicted = True
        key = None
        if self._in_main <= self._main_bytes:
            key = self._small_victim()
        if key is None:
            key = self._main_victim()
        self._leaving = key
        return key

    def _small_victim(self) -> bytes | None:
        """The oldest of S that was not read enough; those that were move to M."""
        small, main, reads = self._small, self._main, self._reads
        while small:
            key = next(iter(small))
            if reads[key] < self.promote_reads:
                return key
            size = small.pop(key)
            self._in_small -= size
            self._in_main += size
            main[key] = size
            reads[key] = 0
        return None

    def _main_victim(self) -> bytes:
        """The oldest of M without a read left; each that is passed over loses one."""
        main, reads = self._main, self._reads
        if not main:  # over its share only by what is gone
            return next(iter(self._small))
        while True:
            key = next(iter(main))
            if not reads[key]:
                return key
            reads[key] -= 1
            main.move_to_end(key)

    def _recall(self, key: bytes) -> None:
        """Whether `key` has a ghost, which it then needs no more."""
        size = self._ghosts.pop(key, None)
        self._is_known = size is not None
        self._in_ghosts -= size or 0

    def _remember(self, key: bytes, size: int) -> None:
        ghosts = self._ghosts
        if size > self._ghost_capacity:
            return
        ghosts[key] = size
        self._in_ghosts += size
        while self._in_ghosts > self._ghost_capacity:
            self._in_ghosts -= ghosts.popitem(last=False)[1]
