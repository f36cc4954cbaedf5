"""What is in a tier: byte accounting, staleness, labels, quotas and eviction, the same for RAM and
SSD."""

from __future__ import annotations

import fnmatch
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.policy import (
    NO_MEMORY,
    EvictionPolicy,
    LendsTable,
    PolicyMemory,
    TakesHitsTogether,
    fresh,
)
from capibench.cache.tiers.expiry import ExpiryOrder

# What a label costs in RAM beside its text: the string's header, and places in the tables of tags.
# Measured with tracemalloc at 2,000 and 22,000 entries; a tag that many entries carry costs more
# than one of a single entry.
_NAME_BYTES = 64
_TAG_BYTES = 176
# Hits are settled together, so many at most. It takes 50-200 us, once in as many hits.
MAX_NOTED = 256


class Entry(NamedTuple):
    """What must travel with a stored value from tier to tier, beside its record (the value in its
    envelope)."""

    kind: CacheType
    cost_s: float  # what recomputing it costs
    expires_s: float  # gone from then on, absolute on the clock of `now`
    fresh_until_s: float = math.inf  # from then to `expires_s` only who allows stale values gets it
    name: str = ""  # what a glob is matched against
    tags: tuple[str, ...] = ()  # of which invalidating any one removes it


class Kept(NamedTuple):
    """What a tier keeps of an entry in RAM."""

    what: Any  # its value if `is_value`, else its record; where that is on SSD: its place there
    is_value: bool
    record_bytes: int  # of the record, wherever it is


ELSEWHERE = Kept(None, False, 0)


@dataclass(slots=True)
class Counters:
    """What happened to entries of one type in one tier."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0  # encoded values that were served
    saved_s: float = 0.0  # what computing the served values would have cost
    stale_hits: int = 0  # of the hits: no longer fresh, served to who allows that
    stored: int = 0
    stored_bytes: int = 0
    expired: int = 0  # dropped as stale, when read or when room was needed
    evicted: int = 0  # had to leave for something else
    demoted: int = 0  # left the RAM tier (or was refused by it) for the SSD tier
    promoted: int = 0  # copied from the SSD tier into the RAM tier after a hit
    rejected_too_large: int = 0  # larger than the whole tier, or than its type's quota
    rejected_by_policy: int = 0
    damaged: int = 0  # bytes were not what was stored: a miss
    bytes: int = 0
    entries: int = 0


def new_counters() -> dict[CacheType, Counters]:
    """One set per cache type."""
    return {kind: Counters() for kind in CacheType}


class _Part:
    """The room of one type with a quota, or of all types without."""

    __slots__ = ("_on_hits", "capacity_bytes", "holds", "num_bytes", "num_entries", "policy")

    def __init__(self, policy: EvictionPolicy, capacity_bytes: int, holds: PolicyMemory) -> None:
        self.capacity_bytes = capacity_bytes
        self.holds = holds
        self.num_bytes = self.num_entries = 0
        self.begin(policy)

    def begin(self, policy: EvictionPolicy) -> None:
        """Decide with a fresh policy like this one."""
        self.policy = fresh(policy, self.capacity_bytes)
        together = self.policy if isinstance(self.policy, TakesHitsTogether) else None
        self._on_hits = None if together is None else together.on_hits

    def with_one_more(self, size: int) -> int:
        """`num_bytes` with one more entry of that size, which the policy may take into a sample."""
        is_sampled = self.num_entries < self.holds.most_sampled
        return self.num_bytes + size + (self.holds.per_sampled if is_sampled else 0)

    def add(self, size: int) -> None:
        """One more entry."""
        self.num_bytes = self.with_one_more(size)
        self.num_entries += 1

    def take(self, size: int) -> None:
        """One entry less."""
        self.num_entries -= 1
        self.num_bytes -= self.with_one_more(size) - self.num_bytes

    def settle(self, hits: list[tuple[Resident, float]]) -> None:
        """Count hits and tell the policy of them."""
        for resident, _ in hits:
            resident.hits += 1
            if not resident.is_here:  # it left between being found and being noted
                _count(resident)
        if self._on_hits is not None:
            self._on_hits([resident.key for resident, _ in hits if resident.is_here])
        else:
            for resident, now in hits:
                if resident.is_here:
                    self.policy.on_hit(resident.key, now)


class Resident:
    """What is known in RAM of one entry, and what the tier keeps of it there."""

    __slots__ = (
        "counters", "entry", "fresh_end_s", "hits", "is_here", "is_value", "kept", "key", "part",
        "record_bytes", "size",
    )  # fmt: skip

    def __init__(
        self, key: bytes, entry: Entry, size: int, counters: Counters, part: _Part, kept: Kept
    ) -> None:
        self.key = key
        self.entry = entry
        self.kept, self.is_value, self.record_bytes = kept
        self.size = size  # that the tier is charged for
        self.counters = counters
        self.part = part
        self.hits = 0  # settled, but not yet in the counters
        self.is_here = True  # until it leaves
        self.fresh_end_s = min(entry.fresh_until_s, entry.expires_s)


class Residents:
    """The keys of one tier. It says which keys must leave; the tier moves the bytes.

    Not thread-safe: the tier holds the lock. But `get` and `noted.append` are single operations of
    the interpreter, so that a hit may do without: it looks the resident up and notes (resident,
    now). What is noted is settled, which means counted and told to the policies, when there are
    `MAX_NOTED`, and before a policy is asked or told anything else: to the policies all is as if
    hits came one by one.

    Every change is made `with` it, and no change within another. One that an exception cut short
    (Ctrl-C, which Python raises anywhere, or a policy's own) is mended before the next: what is
    resident stays so, the sums are made anew, and the policy begins anew, but for one whose table
    holds what is resident.
    """

    def __init__(
        self,
        policy: EvictionPolicy,
        capacity_bytes: int,
        overhead_bytes: int,
        quotas: Mapping[CacheType, float] | None = None,
        *,
        holds: PolicyMemory = NO_MEMORY,
        on_mend: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            quotas: the share of the tier that a type has to itself; others never take from it, and
                it takes no more. Types without one share the rest.
            holds: what the policy takes itself where the tier is charged for that; once for each
                type with a quota, which has a policy of its own, and once for the rest.
            on_mend: called when a change that was cut short has been mended.
        """
        if capacity_bytes < 1:
            raise ValueError(f"capacity_bytes: got {capacity_bytes}; expected at least 1")
        self.capacity_bytes = capacity_bytes
        self._counters = new_counters()
        own = {kind: int(share * capacity_bytes) for kind, share in (quotas or {}).items()}
        rest = _Part(policy, max(1, capacity_bytes - sum(own.values())), holds)
        self._parts = {
            kind: _Part(policy, max(1, own[kind]), holds) if kind in own else rest
            for kind in CacheType
        }
        self._distinct_parts = list(dict.fromkeys(self._parts.values()))
        self._overhead_bytes = overhead_bytes
        only = self._distinct_parts[0].policy if len(self._distinct_parts) == 1 else None
        self._is_lent = isinstance(only, LendsTable)
        self._residents: dict[bytes, Resident] = only.table if isinstance(only, LendsTable) else {}
        self.get = self._residents.get  # a resident by its key, or None
        self.noted: list[tuple[Resident, float]] = []  # hits, and when, that are to be settled
        self._expiry = ExpiryOrder()
        self._tagged: dict[str, bytes | set[bytes]] = {}  # a set where several entries carry it
        self._on_mend = on_mend
        self._last_s = 0.0  # when something was inserted
        self._is_changing = False

    def __enter__(self) -> None:
        if self._is_changing:
            self._mend()
        self._is_changing = True

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self._is_changing = False

    @property
    def num_bytes(self) -> int:
        """That the tier is charged for."""
        return sum(part.num_bytes for part in self._distinct_parts)

    @property
    def counters(self) -> dict[CacheType, Counters]:
        """What happened, by type; looks at all residents."""
        self.settle()
        for resident in list(self._residents.values()):
            _count(resident)
        return self._counters

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def __iter__(self) -> Iterator[bytes]:
        """The resident keys, oldest insertion first, or in the order of the policy's table."""
        return iter(self._residents)

    def all(self) -> list[Resident]:
        """In the same order."""
        return list(self._residents.values())

    def tagged(self, tag: str) -> list[bytes]:
        """The keys of the entries that carry `tag`."""
        keys = self._tagged.get(tag, set())
        return [keys] if isinstance(keys, bytes) else sorted(keys)

    def matching(self, glob: str) -> list[bytes]:
        """The keys of the entries whose name matches; looks at all of them."""
        matches = re.compile(fnmatch.translate(glob)).match
        return [key for key, resident in self._residents.items() if matches(resident.entry.name)]

    def size_of(self, key: bytes, entry: Entry, record_bytes: int) -> int:
        """Bytes that `entry` takes here: key, stored record, labels and overhead per entry."""
        size = len(key) + record_bytes + self._overhead_bytes
        size += self._parts[entry.kind].holds.per_entry
        if entry.name:
            size += _NAME_BYTES + _text_bytes(entry.name)
        for tag in entry.tags:
            size += _TAG_BYTES + _text_bytes(tag)
        return size

    def fits(self, key: bytes, entry: Entry, record_bytes: int) -> bool:
        """Whether the empty tier could hold such an entry."""
        return self._fits(entry.kind, self.size_of(key, entry, record_bytes))

    def _fits(self, kind: CacheType, size: int) -> bool:
        holds, capacity_bytes = self._parts[kind].holds, self._parts[kind].capacity_bytes
        return size + (holds.per_sampled if holds.most_sampled else 0) <= capacity_bytes

    def capacity_of(self, kind: CacheType) -> int:
        """Bytes of the room that a type has to itself, or shares with others without a quota."""
        return self._parts[kind].capacity_bytes

    def counters_of(self, kind: CacheType) -> Counters:
        """To count something in; hits of residents are not in it yet."""
        return self._counters[kind]

    def note_hit(self, resident: Resident, now: float) -> None:
        """It was read, now."""
        self.noted.append((resident, now))
        if len(self.noted) >= MAX_NOTED:
            with self:
                self.settle()

    def settle(self) -> None:
        """Count the noted hits, and tell the policies of them."""
        if not self.noted:
            return
        hits = self.noted[:]
        del self.noted[: len(hits)]  # another thread may have noted one more by now
        if len(self._distinct_parts) == 1:
            self._distinct_parts[0].settle(hits)
            return
        for part in self._distinct_parts:
            part.settle([hit for hit in hits if hit[0].part is part])

    def replay_hit(self, key: bytes, now: float) -> None:
        """`key` was read in an earlier life of the tier."""
        self._residents[key].part.policy.on_hit(key, now)

    def stale(self, now: float) -> list[Resident]:
        """Drop what is stale at `now`, counted as expired, and return it."""
        dropped = []
        while (first := self._expiry.first()) is not None and first[1] <= now:
            resident = self.drop(first[0])
            resident.counters.expired += 1
            dropped.append(resident)
        return dropped

    def drop(self, key: bytes) -> Resident:
        """Forget a resident key; the caller counts why."""
        self.settle()
        return self._forget(key)

    def _forget(self, key: bytes) -> Resident:
        resident = self._residents[key]
        resident.is_here = False  # first: a hit of what is not here is not told to the policy
        del self._residents[key]
        entry = resident.entry
        _count(resident)
        resident.part.take(resident.size)
        resident.counters.bytes -= resident.size
        resident.counters.entries -= 1
        if entry.expires_s < math.inf:
            self._expiry.discard(key)
        for tag in entry.tags:
            keys = self._tagged[tag]
            if isinstance(keys, set):
                keys.discard(key)
            if not keys or keys == key:
                del self._tagged[tag]
        resident.part.policy.on_remove(key)
        return resident

    def make_room(
        self, key: bytes, entry: Entry, size: int, now: float
    ) -> tuple[bool, list[Resident]]:
        """Whether `entry` may enter at the charge of `size` bytes, and what was evicted for it.

        `key` itself must not be resident, and stale entries must have been dropped. What follows
        (`admit` to `insert`) is one deed to a policy: hits that are noted meanwhile come after it.
        """
        self.settle()
        part = self._parts[entry.kind]
        if not self._fits(entry.kind, size):
            self._counters[entry.kind].rejected_too_large += 1
            return False, []
        if part.with_one_more(size) <= part.capacity_bytes:
            return True, []
        if not part.policy.admit(key, size, entry.cost_s, now):
            self._counters[entry.kind].rejected_by_policy += 1
            return False, []
        victims = []
        while part.with_one_more(size) > part.capacity_bytes:
            victims.append(self._evict(part, now))
        return True, victims

    def evict_surplus(self, now: float) -> list[Resident]:
        """Evict in the policy's order what is over capacity: it was larger when it was closed."""
        self.settle()
        victims = []
        for part in self._distinct_parts:
            while part.num_bytes > part.capacity_bytes:
                victims.append(self._evict(part, now))
        return victims

    def _evict(self, part: _Part, now: float) -> Resident:
        victim = self._forget(part.policy.victim(now))
        victim.counters.evicted += 1
        return victim

    def insert(
        self, key: bytes, entry: Entry, size: int, now: float, kept: Kept = ELSEWHERE
    ) -> None:
        """`entry` is stored from now on, at the charge of `size` bytes. Room was made before."""
        self._last_s = now
        part, counters = self._parts[entry.kind], self._counters[entry.kind]
        resident = self._residents[key] = Resident(key, entry, size, counters, part, kept)
        self._enrol(resident, now)

    def _enrol(self, resident: Resident, now: float) -> None:
        """Into the sums, the tables and the policy."""
        key, entry, size = resident.key, resident.entry, resident.size
        part, counters = resident.part, resident.counters
        part.add(size)
        counters.bytes += size
        counters.entries += 1
        if entry.expires_s < math.inf:
            self._expiry.add(key, entry.expires_s)
        for tag in entry.tags:
            keys = self._tagged.setdefault(tag, key)
            if isinstance(keys, set):
                keys.add(key)
            elif keys != key:
                self._tagged[tag] = {keys, key}
        part.policy.on_insert(key, size, entry.cost_s, now, entry.expires_s)

    def _mend(self) -> None:
        self.noted.clear()
        for part in self._distinct_parts:
            part.num_bytes = part.num_entries = 0
            if not self._is_lent:
                part.begin(part.policy)
        for counters in self._counters.values():
            counters.bytes = counters.entries = 0
        self._expiry = ExpiryOrder()
        self._tagged.clear()
        for resident in self._residents.values():
            resident.is_here = True
            self._enrol(resident, self._last_s)
        self._on_mend()

    def renew(self, key: bytes, now: float) -> None:
        """To the policy a resident key leaves and enters again; its stored bytes stay."""
        self.settle()
        resident = self._residents[key]
        entry, policy = resident.entry, resident.part.policy
        policy.on_remove(key)
        self._residents[key] = resident  # in a lent table it is gone now
        policy.on_insert(key, resident.size, entry.cost_s, now, entry.expires_s)


def _count(resident: Resident) -> None:
    hits, resident.hits = resident.hits, 0
    counters = resident.counters
    counters.hits += hits
    counters.hit_bytes += hits * resident.record_bytes
    counters.saved_s += hits * resident.entry.cost_s


def _text_bytes(text: str) -> int:
    """Of a label: in RAM, where one emoji makes every character take four bytes, or as UTF-8 on
    SSD, whichever is more."""
    if text.isascii():
        return len(text)
    return max(sys.getsizeof(text), len(text.encode("utf-8", "surrogatepass")))
