"""The first tier, in RAM. Whoever hits gets the value itself where nobody can change it, and else a
copy, decoded from the record that is held: so the byte count stays true."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.policy import EvictionPolicy, memory_of
from capibench.cache.tiers.envelope import decode_trusted, encode, shareable
from capibench.cache.tiers.residents import (
    MAX_NOTED,
    Counters,
    Entry,
    Kept,
    Resident,
    Residents,
)

# What Python needs per entry beside key, record and labels: object headers, the places in the
# tables, in the policy's order and in the expiry heap, which may hold as many that are gone.
# Measured with tracemalloc under `Lru` beside a table of our own, at most: 1,030 to 1,070 where
# tables have just grown (176, 684 and 2,780 entries), 820 to 920 elsewhere; 890 to 900 and 750 to
# 770 where it lends us its own. What a policy needs beyond its order comes on top
# (`policy.PolicyMemory`).
OVERHEAD_BYTES = 1080


class Lookup(NamedTuple):
    """Where a value was found; `tier` tells a cached None from a miss.

    "off": this type is not cached by the configuration; nothing was looked up or counted.
    """

    value: Any
    tier: Literal["l1", "l2", "miss", "off"]
    is_stale: bool = False  # past its time to live, and served because that was allowed

    @property
    def is_hit(self) -> bool:
        return self.tier in ("l1", "l2")


_new = tuple.__new__  # a NamedTuple's own constructor costs a fifth of a hit


class Displaced(NamedTuple):
    """What found no place in the tier."""

    key: bytes
    entry: Entry
    record: bytes


class L1:
    """Thread-safe; never more than `capacity_bytes` (keys, encoded values, labels, overhead, and
    what the policy holds itself)."""

    def __init__(
        self,
        policy: EvictionPolicy,
        capacity_bytes: int,
        quotas: Mapping[CacheType, float] | None = None,
    ) -> None:
        self._residents = Residents(
            policy, capacity_bytes, OVERHEAD_BYTES, quotas, holds=memory_of(policy)
        )
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
        with self._lock, self._residents:
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

    def get(
        self, kind: CacheType, key: bytes, now: float, allow_stale: bool = False
    ) -> Lookup | None:
        """The value of `key`, counted as a hit; None, counted as a miss, when there is none or it
        is stale.

        The one path that every hit takes, so it is written out: no call that can be spared, no
        lock, and as few objects touched as can be, for in a large tier each is a wait for memory.
        """
        resident = self._find(key)
        if resident is None or now >= resident.fresh_end_s:
            resident = self._get_else(kind, key, now, allow_stale)
            if resident is None:
                return None
            is_stale = now >= resident.fresh_end_s
        else:
            is_stale = False
        value = resident.kept if resident.is_value else decode_trusted(resident.kept)
        noted = self._noted
        noted.append((resident, now))
        if len(noted) >= MAX_NOTED:
            with self._lock, self._residents:
                self._residents.settle()
        return _new(Lookup, (value, "l1", is_stale))

    def _get_else(
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
                with self._residents:
                    self._residents.drop(key)
            elif allow_stale:
                counters.stale_hits += 1
                return resident
            counters.misses += 1
            return None

    def peek(self, key: bytes, now: float) -> bytes | None:
        """The record of `key` if it is fresh; nothing is counted, and no read noted."""
        with self._lock:
            resident = self._find(key)
            if resident is None or now >= resident.fresh_end_s:
                return None
            return _record(resident)

    def held(self, key: bytes) -> Displaced | None:
        """The entry of `key`, fresh or not, and its record; nothing is counted, no read noted."""
        with self._lock:
            resident = self._find(key)
            return None if resident is None else Displaced(key, resident.entry, _record(resident))

    def put(self, key: bytes, entry: Entry, record: bytes, now: float) -> list[Displaced]:
        """Store `record`, instead of an earlier value of `key`.

        Returns:
            What found no place here, for the next tier: the victims, and `record` itself when it
            is larger than the tier or the policy refused it.
        """
        with self._lock, self._residents:
            if key in self._residents:
                self._residents.drop(key)
            self._residents.stale(now)
            size = self._residents.size_of(key, entry, len(record))
            may_enter, victims = self._residents.make_room(key, entry, size, now)
            displaced = [Displaced(each.key, each.entry, _record(each)) for each in victims]
            if not may_enter:
                return [*displaced, Displaced(key, entry, record)]
            self._residents.insert(key, entry, size, now, _kept(record))
            counter = self._residents.counters_of(entry.kind)
            counter.stored += 1
            counter.stored_bytes += len(record)
            return displaced

    def fits(self, key: bytes, entry: Entry, record: bytes) -> bool:
        """Whether the empty tier could hold `record`."""
        return self._residents.fits(key, entry, len(record))

    def remove(self, key: bytes) -> bool:
        """Invalidate `key`; whether it was there."""
        with self._lock, self._residents:
            if key not in self._residents:
                return False
            self._residents.drop(key)
            return True

    def tagged(self, tag: str) -> list[bytes]:
        """The keys of the entries that carry `tag`."""
        with self._lock, self._residents:
            return self._residents.tagged(tag)

    def matching(self, glob: str) -> list[bytes]:
        """The keys of the entries whose name matches `glob`."""
        with self._lock:
            return self._residents.matching(glob)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock, self._residents:
            for key in list(self._residents):
                self._residents.drop(key)

    def keys(self) -> list[bytes]:
        """All keys, in the order of `Residents`."""
        with self._lock:
            return list(self._residents)

    def expire(self, now: float) -> int:
        """Drop everything that is stale at `now`; how many that were."""
        with self._lock, self._residents:
            return len(self._residents.stale(now))


def _kept(record: bytes) -> Kept:
    if shareable(record):
        return Kept(decode_trusted(record), True, len(record))
    return Kept(record, False, len(record))


def _record(resident: Resident) -> bytes:
    record: bytes = encode(resident.kept) if resident.is_value else resident.kept
    return record
