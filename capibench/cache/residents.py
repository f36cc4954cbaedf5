"""What is in a tier: byte accounting, staleness and eviction, the same for RAM and SSD."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from capibench.cache.expiry import ExpiryOrder
from capibench.cache.keys import CacheType
from capibench.cache.policy import EvictionPolicy


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored value with what must travel with it from tier to tier."""

    kind: CacheType
    record: bytes  # the value in its envelope
    cost_s: float  # what recomputing it costs
    expires_s: float  # stale from then on, absolute on the clock of `now`


@dataclass(slots=True)
class Counters:
    """What happened to entries of one type in one tier."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0  # encoded values that were served
    stored: int = 0
    stored_bytes: int = 0
    expired: int = 0  # dropped as stale, when read or when room was needed
    evicted: int = 0  # had to leave for something else
    demoted: int = 0  # left the RAM tier (or was refused by it) for the SSD tier
    promoted: int = 0  # copied from the SSD tier into the RAM tier after a hit
    rejected_too_large: int = 0  # larger than the whole tier
    rejected_by_policy: int = 0
    damaged: int = 0  # bytes were not what was stored: a miss
    bytes: int = 0
    entries: int = 0


def new_counters() -> dict[CacheType, Counters]:
    """One set per cache type."""
    return {kind: Counters() for kind in CacheType}


@dataclass(frozen=True, slots=True)
class _Resident:
    kind: CacheType
    size: int
    expires_s: float
    cost_s: float


class Residents:
    """The keys of one tier. It says which keys must leave; the tier moves the bytes.

    Not thread-safe: the tier holds the lock.
    """

    def __init__(self, policy: EvictionPolicy, capacity_bytes: int, overhead_bytes: int) -> None:
        if capacity_bytes < 1:
            raise ValueError(f"capacity_bytes: got {capacity_bytes}; expected at least 1")
        self.capacity_bytes = capacity_bytes
        self.num_bytes = 0
        self.counters = new_counters()
        self._policy: EvictionPolicy = dataclasses.replace(policy)  # type: ignore[type-var]
        self._overhead_bytes = overhead_bytes
        self._residents: dict[bytes, _Resident] = {}
        self._expiry = ExpiryOrder()

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def keys(self) -> list[bytes]:
        """All resident keys, oldest insertion first."""
        return list(self._residents)

    def size_of(self, key: bytes, entry: Entry) -> int:
        """Bytes that `entry` takes here: key, encoded value and the tier's overhead per entry."""
        return len(key) + len(entry.record) + self._overhead_bytes

    def is_fresh(self, key: bytes, now: float) -> bool:
        """Whether `key` is resident and not stale."""
        resident = self._residents.get(key)
        return resident is not None and now < resident.expires_s

    def expires_s(self, key: bytes) -> float | None:
        """When a resident key goes stale; None when it is not resident."""
        resident = self._residents.get(key)
        return None if resident is None else resident.expires_s

    def count_hit(self, key: bytes, num_record_bytes: int, now: float) -> None:
        """`key` was read and its value found whole."""
        counter = self.counters[self._residents[key].kind]
        counter.hits += 1
        counter.hit_bytes += num_record_bytes
        self._policy.on_hit(key, now)

    def stale(self, now: float) -> list[bytes]:
        """Drop what is stale at `now`, counted as expired, and return it."""
        keys = []
        while (first := self._expiry.first()) is not None and first[1] <= now:
            keys.append(first[0])
            self.counters[self.drop(first[0])].expired += 1
        return keys

    def drop(self, key: bytes) -> CacheType:
        """Forget a resident key; the caller counts why."""
        resident = self._residents.pop(key)
        self.num_bytes -= resident.size
        counter = self.counters[resident.kind]
        counter.bytes -= resident.size
        counter.entries -= 1
        self._expiry.discard(key)
        self._policy.on_remove(key)
        return resident.kind

    def make_room(self, key: bytes, entry: Entry, now: float) -> tuple[bool, list[bytes]]:
        """Whether `entry` may enter, and the keys that were evicted for it.

        `key` itself must not be resident, and stale entries must have been dropped.
        """
        size = self.size_of(key, entry)
        counter = self.counters[entry.kind]
        if size > self.capacity_bytes:
            counter.rejected_too_large += 1
            return False, []
        if self.num_bytes + size <= self.capacity_bytes:
            return True, []
        if not self._policy.admit(key, size, entry.cost_s, now):
            counter.rejected_by_policy += 1
            return False, []
        return True, self.evict_to(self.capacity_bytes - size, now)

    def evict_to(self, num_bytes: int, now: float) -> list[bytes]:
        """Evict in the policy's order until at most `num_bytes` are resident."""
        victims = []
        while self.num_bytes > num_bytes:
            victim = self._policy.victim(now)
            victims.append(victim)
            self.counters[self.drop(victim)].evicted += 1
        return victims

    def insert(self, key: bytes, entry: Entry, now: float) -> None:
        """`entry` is stored from now on. Room was made before."""
        size = self.size_of(key, entry)
        self._residents[key] = _Resident(entry.kind, size, entry.expires_s, entry.cost_s)
        self.num_bytes += size
        counter = self.counters[entry.kind]
        counter.bytes += size
        counter.entries += 1
        self._expiry.add(key, entry.expires_s)
        self._policy.on_insert(key, size, entry.cost_s, now, entry.expires_s)

    def renew(self, key: bytes, now: float) -> None:
        """To the policy a resident key leaves and enters again; its stored bytes stay."""
        resident = self._residents[key]
        self._policy.on_remove(key)
        self._policy.on_insert(key, resident.size, resident.cost_s, now, resident.expires_s)
