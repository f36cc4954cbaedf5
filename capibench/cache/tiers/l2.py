"""The second tier, on SSD: records in RocksDB, keys, sizes and the policy's order in RAM.

A damaged record is a miss, never a wrong value, and what was overwritten or invalidated does not
come back from a damaged disk (see `ledger`). What is invalidated or stored while the store could
not be opened makes it begin empty when it can; where even that is impossible (a read-only disk) it
is tried again with each invalidation and at the end, counted, and said once.

On open the policy's state is rebuilt from what was inserted and, as far as the access log goes,
read: the same calls in the same order.

Expiry is absolute on the caller's clock: reopen a folder only under a clock that went on.
`capacity_bytes` counts live records; RocksDB's log and not yet compacted ones come on top.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from weakref import WeakMethod

from capibench.cache.keys import KEY_BYTES, CacheType
from capibench.cache.policy import EvictionPolicy
from capibench.cache.tiers.access_log import READS_PER_BLOCK, AccessLog, reads
from capibench.cache.tiers.compression import Compression, Compressor
from capibench.cache.tiers.envelope import DamagedError, decode, decode_trusted, encode
from capibench.cache.tiers.l2_record import (
    OVERHEAD_BYTES,
    StoredRecord,
    claimed_kind,
    pack_record,
    packed_value,
    unpack_record,
)
from capibench.cache.tiers.residents import Counters, Entry, Kept, Resident, Residents
from capibench.cache.tiers.rocks import RocksStore

# What is not a record has a key of another length than records have.
_DICTIONARY, _READS = b"dictionary/", b"reads/"
_READS_KEPT_PER_ENTRY = 4
_new = tuple.__new__  # a NamedTuple's own constructor takes twice as long


class Found(NamedTuple):
    """A whole value: decoded (the caller's own), and as it is handed on to the tier above."""

    value: Any
    entry: Entry
    record: bytes


class L2:
    """Thread-safe. A disk that fails (full, read-only, gone) costs hits, not requests: every
    failed operation is counted in `num_errors` and otherwise a miss or a value not stored."""

    def __init__(
        self,
        policy: EvictionPolicy,
        capacity_bytes: int,
        folder: Path,
        now: float = float("inf"),
        *,
        quotas: Mapping[CacheType, float] | None = None,
        compression: Compression | None = None,
    ) -> None:
        """Open or create the store in a folder of its own in `folder`, which nobody but its owner
        may enter (0700; `folder` too where it did not exist).

        Args:
            now: what was inserted later than that is dropped: the clock has gone back.
            quotas: see `Residents`.
            compression: of records; None: stored as they are.

        Raises:
            ConfigError: another process, or another object of this one, uses the folder.
        """
        begin_s = perf_counter()
        self._residents = Residents(
            policy, capacity_bytes, OVERHEAD_BYTES, quotas, on_mend=_weakly(self._forget_others)
        )
        self._lock = threading.Lock()
        self._compressor = Compressor(compression)
        self._num_events = 0
        self._accesses = AccessLog()
        self._blocks: list[bytes] = []  # their keys, oldest first
        self._store = RocksStore(folder)
        if self._store.is_open:
            self._rebuild(now)
        self.open_s = perf_counter() - begin_s

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

    @property
    def num_errors(self) -> int:
        return self._store.num_errors

    @property
    def first_error(self) -> str | None:
        return self._store.first_error

    def capacity_of(self, kind: CacheType) -> int:
        """Bytes that entries of one type may take, at most."""
        return self._residents.capacity_of(kind)

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def get(
        self, kind: CacheType, key: bytes, now: float, allow_stale: bool = False
    ) -> Found | None:
        """The value of `key`, or None when there is none, it is stale, damaged or unreadable."""
        with self._lock:
            resident = self._residents.get(key)
            if resident is None:
                return self._missed(kind)
            is_stale = now >= resident.fresh_end_s
            if is_stale:
                if now >= resident.entry.expires_s:
                    resident.counters.expired += 1
                    with self._residents:
                        self._drop(key)
                    return self._missed(kind)
                if not allow_stale:
                    return self._missed(kind)
            try:
                whole = self._read(kind, key)
            except DamagedError:
                resident.counters.damaged += 1
                whole = None
            if whole is None:
                with self._residents:
                    self._drop(key)
                return self._missed(kind)
            value, record = whole
            if is_stale:
                resident.counters.stale_hits += 1
            self._residents.note_hit(resident, now)
            self._note_read(key, now)
            return _new(Found, (value, resident.entry, record))

    def _missed(self, kind: CacheType) -> Found | None:
        """Count a miss; None, for `get` to return."""
        self._residents.counters_of(kind).misses += 1
        return None

    def peek(self, key: bytes, now: float) -> Found | None:
        """The value of `key` if it is fresh and whole; nothing is counted, and no read noted."""
        with self._lock:
            resident = self._residents.get(key)
            if resident is None or now >= resident.fresh_end_s:
                return None
            try:
                whole = self._read(resident.entry.kind, key)
            except DamagedError:
                return None
            return None if whole is None else Found(whole[0], resident.entry, whole[1])

    def put(self, key: bytes, entry: Entry, record: bytes, now: float) -> bool:
        """Store `record`; whether it is here now. What it displaces is gone.

        A value that is already here with the same expiry is the same value, and is not written
        again (an SSD wears out by writing); to the policy it enters anew.
        """
        with self._lock, self._residents:
            if self._store.is_damaged:
                self._empty()
            known = self._residents.get(key)
            if known is not None:
                if known.entry.expires_s == entry.expires_s:
                    self._residents.renew(key, now)
                    self._note_read(key, now)
                    return True
                self._drop(key)
            self._delete(self._residents.stale(now))
            codec, packed = self._packed(entry.kind, record)
            size = self._residents.size_of(key, entry, len(packed))
            may_enter, victims = self._residents.make_room(key, entry, size, now)
            self._delete(victims)
            if not may_enter or (ticket := self._store.enter()) is None:
                return False
            stored = pack_record(
                key, entry, codec, packed, len(record), ticket, self._num_events, now
            )
            if not self._store.write(key, stored):
                self._store.delete(key, ticket.place)
                return False
            self._num_events += 1
            kept = Kept(ticket.place, False, len(record))
            self._residents.insert(key, entry, size, now, kept)
            counter = self._residents.counters_of(entry.kind)
            counter.stored += 1
            counter.stored_bytes += len(packed)
            return True

    def remove(self, key: bytes) -> bool:
        """Invalidate `key`; whether it was there."""
        with self._lock, self._residents:
            if key not in self._residents:
                self._store.forget()
                return False
            self._drop(key)
            return True

    def sync(self) -> None:
        """Make removals outlast a power cut; milliseconds."""
        with self._lock:
            self._store.sync()

    def tagged(self, tag: str) -> list[bytes]:
        """The keys of the entries that carry `tag`, all of which are now to be removed."""
        with self._lock, self._residents:
            self._store.forget()
            return self._residents.tagged(tag)

    def matching(self, glob: str) -> list[bytes]:
        """The keys of the entries whose name matches `glob`, all of which are now to be removed."""
        with self._lock:
            self._store.forget()
            return self._residents.matching(glob)

    def keys(self) -> list[bytes]:
        """All keys, in the order of `Residents`."""
        with self._lock:
            return list(self._residents)

    def expire(self, now: float) -> int:
        """Drop everything that is stale at `now`; how many that were."""
        with self._lock, self._residents:
            stale = self._residents.stale(now)
            self._delete(stale)
            return len(stale)

    def clear(self) -> None:
        """Remove everything, faster than one by one."""
        with self._lock, self._residents:
            self._empty()

    def stats(self) -> dict[str, Any]:
        """What there is to say beside the counters, as JSON."""
        with self._lock:
            return {
                "errors": self._store.num_errors,
                "first_error": self._store.first_error,
                "open_s": self.open_s,
                "disk_bytes": self._store.disk_bytes(),
                "compression": self._compressor.stats(),
            }

    def close(self) -> None:
        """Release the folder at once; closing again does nothing."""
        with self._lock:
            with self._residents:  # what was cut short is mended, on disk too
                block = self._accesses.flush()
            if block is not None and self._store.is_open:
                self._write_block(block)
            self._store.close()

    def _rebuild(self, now: float) -> None:
        inserted: dict[bytes, tuple[StoredRecord, int]] = {}  # without its bytes, and their charge
        events: list[tuple[int, float, bytes]] = []
        useless: list[bytes] = []
        for key, stored in self._store.scan():
            if key.startswith(_READS) and len(key) != KEY_BYTES:
                self._blocks.append(key)
                events.extend(reads(stored))
            elif key.startswith(_DICTIONARY) and len(key) != KEY_BYTES:
                if not self._load_dictionary(key, stored):
                    useless.append(key)
            else:
                try:
                    record = unpack_record(key, stored)
                except DamagedError:
                    self._residents.counters_of(claimed_kind(stored)).damaged += 1
                    useless.append(key)
                    continue
                if record.inserted_s > now or not self._store.is_valid(*record.ticket):
                    useless.append(key)
                    continue
                size = self._residents.size_of(key, record.entry, len(record.packed))
                inserted[key] = (record._replace(packed=b""), size)
                events.append((record.event, record.inserted_s, key))
        self._blocks.sort()
        events.sort()
        last_s = 0.0
        for event, at_s, key in events:
            self._num_events, last_s = event + 1, max(last_s, at_s)
            if key not in inserted:
                continue
            of, size = inserted[key]
            if of.event == event:
                kept = Kept(of.ticket.place, False, of.num_bytes)
                self._residents.insert(key, of.entry, size, at_s, kept)
            elif of.event < event:
                self._residents.replay_hit(key, at_s)
        self._residents.evict_surplus(last_s)
        self._forget_others()
        for key in (*useless, *(key for key in inserted if key not in self._residents)):
            self._store.delete(key)

    def _empty(self) -> None:
        for key in list(self._residents):
            self._residents.drop(key)
        self._compressor.forget()
        self._accesses.flush()
        self._blocks.clear()
        self._store.clear()

    def _forget_others(self) -> None:
        """What is on disk but not resident does not come back."""
        self._store.keep(resident.kept for resident in self._residents.all())

    def _load_dictionary(self, key: bytes, stored: bytes) -> bool:
        """Whether it is whole."""
        try:
            kind = CacheType(key[len(_DICTIONARY) :].decode("ascii"))
            self._compressor.load_dictionary(kind, bytes(decode(stored)))
        except ValueError:  # DamagedError is one
            return False
        return True

    def _packed(self, kind: CacheType, record: bytes) -> tuple[int, bytes]:
        dictionary = self._compressor.learn(kind, record)
        if dictionary is not None:
            key = _DICTIONARY + kind.value.encode("ascii")
            if self._store.write(key, encode(dictionary)):
                self._compressor.load_dictionary(kind, dictionary)
        return self._compressor.pack(kind, record)

    def _read(self, kind: CacheType, key: bytes) -> tuple[Any, bytes] | None:
        """A value and its record; None after a failed read.

        Raises:
            DamagedError: they are not what was stored last.
        """
        stored = self._store.read(key)
        if stored is None:
            return None
        place, number, codec, packed, num_bytes = packed_value(key, stored)
        if not self._store.is_valid(place, number):
            raise DamagedError("an older record came back")
        record = self._compressor.unpack(kind, codec, packed, num_bytes)
        return decode_trusted(record), record

    def _note_read(self, key: bytes, now: float) -> None:
        block = self._accesses.note(key, self._num_events, now)
        self._num_events += 1
        if block is not None:
            self._write_block(block)

    def _write_block(self, block: bytes) -> None:
        key = _READS + self._num_events.to_bytes(8, "big")
        if self._store.write(key, block):
            self._blocks.append(key)
        max_reads = max(_READS_KEPT_PER_ENTRY * len(self._residents), 2 * READS_PER_BLOCK)
        while len(self._blocks) * READS_PER_BLOCK > max_reads:
            self._store.delete(self._blocks.pop(0))

    def _drop(self, key: bytes) -> None:
        self._delete([self._residents.drop(key)])

    def _delete(self, dropped: Iterable[Resident]) -> None:
        for resident in dropped:
            self._store.delete(resident.key, resident.kept)


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """`method`, without keeping its object: one that is dropped releases its folder at once."""
    reference = WeakMethod(method)

    def call() -> None:
        found = reference()
        if found is not None:
            found()

    return call
