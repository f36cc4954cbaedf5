"""The first tier, in RAM. Values are held encoded, so that the byte count is true and nobody can
change a cached value through a reference to it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from capibench.cache.envelope import decode_trusted
from capibench.cache.keys import CacheType
from capibench.cache.policy import EvictionPolicy
from capibench.cache.residents import MAX_NOTED, Counters, Entry, Resident, Residents

# What Python needs per entry beside key, record and labels: object headers, the places in the
# tables, in the expiry heap and in the policy's order. Measured with tracemalloc at 2,000 and
# 22,000 entries: 605-805 under most policies, 860 under `Lfu`, 930 under `Gdsf`. `Adaptive` and
# `Predictive` hold their miniatures on top of that.
OVERHEAD_BYTES = 832


class Found(NamedTuple):
    """A hit: the decoded value (the caller's own copy) and the entry that it came from."""

    value: Any
    entry: Entry


class L1:
    """Thread-safe; never more than `capacity_bytes` (keys, encoded values, labels, overhead)."""

    def __init__(
        self,
        policy: EvictionPolicy,
        capacity_bytes: int,
        quotas: Mapping[CacheType, float] | None = None,
    ) -> None:
        self._residents = Residents(policy, capacity_bytes, OVERHEAD_BYTES, quotas)
        self._find = self._residents.get
        self._noted = self._residents.noted
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._residents.num_bytes

    @property
    def capacity_bytes(self) -> int:
        return self._residents.capacity_bytes

    @property
    def counters(self) -> dict[CacheType, Counters]:
        with self._lock:
            return self._residents.counters

    def counters_of(self, kind: CacheType) -> Counters:
        """To count something in."""
        return self._residents.counters_of(kind)

    def capacity_of(self, kind: CacheType) -> int:
        """Bytes that entries of one type may take, at most."""
        return self._residents.capacity_of(kind)

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def read(
        self, kind: CacheType, key: bytes, now: float, allow_stale: bool = False
    ) -> Resident | None:
        """What is known of `key`, counted as a hit or a miss; None when there is none or it is
        stale.

        The one path that every hit takes, so it is written out: no call that can be spared, no
        lock, and as few objects touched as can be, for in a large tier each is a wait for memory.
        """
        resident = self._find(key)
        if resident is None or now >= resident.fresh_end_s:
            resident = self._read_else(kind, key, now, allow_stale)
            if resident is None:
                return None
        noted = self._noted
        noted.append((resident, now))
        if len(noted) >= MAX_NOTED:
            with self._lock:
                self._residents.settle()
        return resident

    def _read_else(
        self, kind: CacheType, key: bytes, now: float, allow_stale: bool
    ) -> Resident | None:
        """What does not end in a fresh hit; None for a miss, which is counted."""
        with self._lock:
            resident = self._find(key)
            if resident is None:
                self._residents.counters_of(kind).misses += 1
                return None
            if now < resident.fresh_end_s:  # another thread has just stored it
                return resident
            counters = resident.counters
            if now >= resident.entry.expires_s:
                counters.expired += 1
                self._residents.drop(key)
            elif allow_stale:
                counters.stale_hits += 1
                return resident
            counters.misses += 1
            return None

    def get(self, kind: CacheType, key: bytes, now: float) -> Found | None:
        """The value of `key`, or None when there is none or it is stale."""
        resident = self.read(kind, key, now)
        return None if resident is None else Found(decode_trusted(resident.record), resident.entry)

    def peek(self, key: bytes, now: float) -> Entry | None:
        """The entry of `key` if it is fresh; nothing is counted, and no read noted."""
        with self._lock:
            resident = self._find(key)
            if resident is None or now >= resident.fresh_end_s:
                return None
            return resident.entry

    def put(self, key: bytes, entry: Entry, now: float) -> list[tuple[bytes, Entry]]:
        """Store `entry`, instead of an earlier value of `key`.

        Returns:
            What found no place here, for the next tier: the victims, and `entry` itself when it
            is larger than the tier or the policy refused it.
        """
        with self._lock:
            if key in self._residents:
                self._residents.drop(key)
            self._residents.stale(now)
            size = self._residents.size_of(key, entry, len(entry.record))
            may_enter, displaced = self._residents.make_room(key, entry, size, now)
            if not may_enter:
                return [*displaced, (key, entry)]
            self._residents.insert(key, entry, size, now)
            counter = self._residents.counters_of(entry.kind)
            counter.stored += 1
            counter.stored_bytes += len(entry.record)
            return displaced

    def fits(self, key: bytes, entry: Entry) -> bool:
        """Whether the empty tier could hold `entry`."""
        return self._residents.fits(key, entry)

    def remove(self, key: bytes) -> bool:
        """Invalidate `key`; whether it was there."""
        with self._lock:
            if key not in self._residents:
                return False
            self._residents.drop(key)
            return True

    def tagged(self, tag: str) -> list[bytes]:
        """The keys of the entries that carry `tag`."""
        with self._lock:
            return self._residents.tagged(tag)

    def matching(self, glob: str) -> list[bytes]:
        """The keys of the entries whose name matches `glob`."""
        with self._lock:
            return self._residents.matching(glob)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            for key in list(self._residents):
                self._residents.drop(key)

    def keys(self) -> list[bytes]:
        """All keys, oldest insertion first."""
        with self._lock:
            return list(self._residents)

    def expire(self, now: float) -> int:
        """Drop everything that is stale at `now`; how many that were."""
        with self._lock:
            return len(self._residents.stale(now))
