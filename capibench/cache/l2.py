"""The second tier, on SSD: RocksDB with a write-ahead log and without fsync per write, so that a
killed process loses nothing and a power cut loses the last moments of a mere cache.

A record on disk is: CRC-32 over key and header (4 bytes), header (type, insertion number, cost,
insertion time, expiry), the value's envelope with a checksum of its own. Every byte is covered;
a damaged record is a miss, never a wrong value. Keys, sizes and the policy's order are in RAM and
rebuilt on open in order of insertion (reads since then are not remembered).

Expiry is absolute on the caller's clock: reopen a folder only under a clock that went on.
`capacity_bytes` counts live records; RocksDB's log and not yet compacted ones come on top.
"""

from __future__ import annotations

import logging
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from rocksdict import DBCompressionType, DBRecoveryMode, Options, Rdict

from capibench.cache.envelope import DamagedError, decode
from capibench.cache.keys import CacheType
from capibench.cache.l1 import Found
from capibench.cache.policy import EvictionPolicy
from capibench.cache.residents import Counters, Entry, Residents
from capibench.errors import ConfigError

_LOG = logging.getLogger(__name__)
_HEADER = struct.Struct("<BQddd")  # type, insertion number, cost_s, inserted_s, expires_s
_CRC_BYTES = 4
_ENVELOPE_START = _CRC_BYTES + _HEADER.size
OVERHEAD_BYTES = _ENVELOPE_START + 16  # our header, and RocksDB's per record
_KINDS = tuple(CacheType)  # new types are appended: a record stores the position


class L2:
    """Thread-safe. A disk that fails (full, read-only, gone) costs hits, not requests: every
    failed operation is counted in `num_errors` and otherwise a miss or a value not stored."""

    def __init__(self, policy: EvictionPolicy, capacity_bytes: int, folder: Path) -> None:
        """Open or create the store in `folder`, which becomes readable by its owner alone.

        Raises:
            ConfigError: another process, or another object of this one, uses the folder.
        """
        self._residents = Residents(policy, capacity_bytes, OVERHEAD_BYTES)
        self._lock = threading.Lock()
        self._num_inserted = 0
        self.num_errors = 0
        self.first_error: str | None = None
        self._db: Rdict | None = self._open(folder)
        if self._db is not None:
            self._rebuild(self._db)

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
        return len(self._residents)

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def get(self, kind: CacheType, key: bytes, now: float) -> Found | None:
        """The value of `key`, or None when there is none, it is stale, damaged or unreadable."""
        with self._lock:
            counter = self._residents.counters[kind]
            if key not in self._residents:
                counter.misses += 1
                return None
            if not self._residents.is_fresh(key, now):
                counter.expired += 1
                counter.misses += 1
                self._drop(key)
                return None
            try:
                stored = self._read(key)
                if stored is None:
                    counter.misses += 1
                    self._drop(key)
                    return None
                _, _, entry = _unpack(key, stored)
                found = Found(decode(entry.record), entry)
            except DamagedError:
                counter.damaged += 1
                counter.misses += 1
                self._drop(key)
                return None
            self._residents.count_hit(key, len(entry.record), now)
            return found

    def put(self, key: bytes, entry: Entry, now: float) -> bool:
        """Store `entry`; whether it is here now. What it displaces is gone.

        A value that is already here with the same expiry is the same value, and is not written
        again (an SSD wears out by writing); to the policy it enters anew.
        """
        with self._lock:
            if self._residents.expires_s(key) == entry.expires_s:
                self._residents.renew(key, now)
                return True
            if key in self._residents:
                self._drop(key)
            for stale in self._residents.stale(now):
                self._delete(stale)
            may_enter, victims = self._residents.make_room(key, entry, now)
            for victim in victims:
                self._delete(victim)
            if not may_enter or not self._write(key, _pack(key, entry, self._num_inserted, now)):
                return False
            self._num_inserted += 1
            self._residents.insert(key, entry, now)
            counter = self._residents.counters[entry.kind]
            counter.stored += 1
            counter.stored_bytes += len(entry.record)
            return True

    def remove(self, key: bytes) -> bool:
        """Invalidate `key`; whether it was there."""
        with self._lock:
            if key not in self._residents:
                return False
            self._drop(key)
            return True

    def expire(self, now: float) -> int:
        """Drop everything that is stale at `now`; how many that were."""
        with self._lock:
            stale = self._residents.stale(now)
            for key in stale:
                self._delete(key)
            return len(stale)

    def close(self) -> None:
        """Release the folder at once; closing again does nothing."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self, folder: Path) -> Rdict | None:
        for is_retry in (False, True):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder.chmod(0o700)
                return Rdict(str(folder), _options())
            except Exception as error:
                message = str(error)
                if "lock hold by" in message or "While lock file" in message:
                    problem = f"{folder} is used by another process or cache; expected a free one"
                    raise ConfigError("cache.folder", problem) from error
                self._count_error("open", error)
                if is_retry or "Corruption" not in message:
                    return None
                shutil.rmtree(folder, ignore_errors=True)  # a cache may start empty
        return None

    def _rebuild(self, db: Rdict) -> None:
        found = []
        for key, stored in self._scan(db):
            try:
                found.append((*_unpack(key, stored), key))
            except DamagedError:
                self._residents.counters[_kind_or_first(stored)].damaged += 1
                self._delete(key)
        found.sort(key=lambda item: item[0])
        last_s = 0.0
        for number, inserted_s, entry, key in found:
            self._residents.insert(key, entry, inserted_s)
            self._num_inserted, last_s = number + 1, max(last_s, inserted_s)
        for victim in self._residents.evict_to(self.capacity_bytes, last_s):
            self._delete(victim)

    def _scan(self, db: Rdict) -> Iterator[tuple[bytes, bytes]]:
        """All readable records: from the front up to a damaged block, then from the back."""
        cursor, last = db.iter(), b""
        cursor.seek_to_first()
        while cursor.valid():
            last = cursor.key()
            yield last, cursor.value()
            cursor.next()
        try:
            cursor.status()
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("scan", error)
        else:
            return
        cursor = db.iter()
        cursor.seek_to_last()
        while cursor.valid() and cursor.key() > last:
            yield cursor.key(), cursor.value()
            cursor.prev()

    def _read(self, key: bytes) -> bytes | None:
        """The stored bytes; None after a failed read."""
        if self._db is None:
            self.num_errors += 1
            return None
        try:
            stored: bytes | None = self._db.get(key)
        except Exception as error:
            if "Corruption" in str(error):
                raise DamagedError(str(error)) from error
            self._count_error("read", error)
            return None
        if stored is None:
            raise DamagedError("a resident record is not on disk")
        return stored

    def _write(self, key: bytes, stored: bytes) -> bool:
        if self._db is None:
            self.num_errors += 1
            return False
        try:
            self._db.put(key, stored)
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("write", error)
            return False
        return True

    def _delete(self, key: bytes) -> None:
        if self._db is None:
            return
        try:
            self._db.delete(key)
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("delete", error)

    def _drop(self, key: bytes) -> None:
        self._residents.drop(key)
        self._delete(key)

    def _count_error(self, operation: str, error: Exception) -> None:
        self.num_errors += 1
        if self.first_error is None:
            self.first_error = f"{operation}: {error}"
            _LOG.warning("the SSD cache tier failed (%s); going on without it", self.first_error)


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())  # so that bytes are what we count
    options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
    options.set_write_buffer_size(8 << 20)  # a killed store reopens soon
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    return options


def _pack(key: bytes, entry: Entry, number: int, now: float) -> bytes:
    header = _HEADER.pack(_KINDS.index(entry.kind), number, entry.cost_s, now, entry.expires_s)
    crc = zlib.crc32(header, zlib.crc32(key))
    return crc.to_bytes(_CRC_BYTES, "little") + header + entry.record


def _unpack(key: bytes, stored: bytes) -> tuple[int, float, Entry]:
    """Insertion number, insertion time and entry; the envelope is checked when it is decoded."""
    header = stored[_CRC_BYTES:_ENVELOPE_START]
    crc = int.from_bytes(stored[:_CRC_BYTES], "little")
    if len(stored) <= _ENVELOPE_START or zlib.crc32(header, zlib.crc32(key)) != crc:
        raise DamagedError("checksum of a record's header does not fit")
    kind, number, cost_s, inserted_s, expires_s = _HEADER.unpack(header)
    if kind >= len(_KINDS):
        raise DamagedError(f"unknown cache type {kind}")
    return number, inserted_s, Entry(_KINDS[kind], stored[_ENVELOPE_START:], cost_s, expires_s)


def _kind_or_first(stored: bytes) -> CacheType:
    """The type that a damaged record claims, for the count alone."""
    position = stored[_CRC_BYTES] if len(stored) > _CRC_BYTES else 0
    return _KINDS[position] if position < len(_KINDS) else _KINDS[0]
