"""The first tier, in RAM. Values are held encoded, so that the byte count is true and nobody can
change a cached value through a reference to it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from capibench.cache.envelope import DamagedError, decode
from capibench.cache.keys import CacheType
from capibench.cache.policy import EvictionPolicy
from capibench.cache.residents import Counters, Entry, Residents

# What Python needs per entry beside key and record: object headers, the places in the tables, in
# the expiry heap and in the policy's order. Measured with tracemalloc at 2,000 to 44,000 entries:
# 510-670 under `Lru`, 560-720 under `Ttl`.
OVERHEAD_BYTES = 768


@dataclass(frozen=True, slots=True)
class Found:
    """A hit: the decoded value (the caller's own copy) and the entry that it came from."""

    value: Any
    entry: Entry


class L1:
    """Thread-safe; at most `capacity_bytes` (keys + encoded values + overhead) at any time."""

    def __init__(self, policy: EvictionPolicy, capacity_bytes: int) -> None:
        self._residents = Residents(policy, capacity_bytes, OVERHEAD_BYTES)
        self._entries: dict[bytes, Entry] = {}
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._residents.num_bytes

    @property
    def capacity_bytes(self) -> int:
        return self._residents.capacity_bytes

    @property
    def counters(self) -> dict[CacheType, Counters]:
        return self._residents.counters

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, kind: CacheType, key: bytes, now: float) -> Found | None:
        """The value of `key`, or None when there is none, it is stale or it is damaged."""
        with self._lock:
            entry = self._entries.get(key)
            counter = self._residents.counters[kind]
            if entry is None:
                counter.misses += 1
                return None
            if now >= entry.expires_s:
                counter.expired += 1
                counter.misses += 1
                self._drop(key)
                return None
            try:
                value = decode(entry.record)
            except DamagedError:
                counter.damaged += 1
                counter.misses += 1
                self._drop(key)
                return None
            self._residents.count_hit(key, len(entry.record), now)
            return Found(value, entry)

    def put(self, key: bytes, entry: Entry, now: float) -> list[tuple[bytes, Entry]]:
        """Store `entry`, instead of an earlier value of `key`.

        Returns:
            What found no place here, for the next tier: the victims, and `entry` itself when it
            is larger than the tier or the policy refused it.
        """
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._drop_stale(now)
            may_enter, victims = self._residents.make_room(key, entry, now)
            displaced = [(victim, self._entries.pop(victim)) for victim in victims]
            if not may_enter:
                return [*displaced, (key, entry)]
            self._entries[key] = entry
            self._residents.insert(key, entry, now)
            counter = self._residents.counters[entry.kind]
            counter.stored += 1
            counter.stored_bytes += len(entry.record)
            return displaced

    def fits(self, key: bytes, entry: Entry) -> bool:
        """Whether the empty tier could hold `entry`."""
        return self._residents.size_of(key, entry) <= self.capacity_bytes

    def remove(self, key: bytes) -> bool:
        """Invalidate `key`; whether it was there."""
        with self._lock:
            if key not in self._entries:
                return False
            self._drop(key)
            return True

    def expire(self, now: float) -> int:
        """Drop everything that is stale at `now`; how many that were."""
        with self._lock:
            return self._drop_stale(now)

    def _drop(self, key: bytes) -> None:
        del self._entries[key]
        self._residents.drop(key)

    def _drop_stale(self, now: float) -> int:
        stale = self._residents.stale(now)
        for key in stale:
            del self._entries[key]
        return len(stale)
