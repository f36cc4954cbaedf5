"""RocksDB, as a store of bytes that may fail at any time: every failure is counted, none raised.

A write-ahead log and no fsync per write: a killed process loses nothing, a power cut what was
written in the last moments (and undoes what was overwritten then; what was invalidated is synced).
What is deleted does not come back, whatever is damaged: see `ledger`. Nobody but its owner may
enter the folder (0700), whatever the modes of the files in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DbClosedError,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    SliceTransform,
)

from capibench.cache.tiers.envelope import DamagedError
from capibench.cache.tiers.ledger import Ledger, Ticket, strike_all
from capibench.errors import ConfigError

_LOG = logging.getLogger(__name__)
# Bytes in another layout are another folder: never read. One of an older layout is deleted.
_FORMAT = 3
FORMAT_FOLDER = f"format_{_FORMAT}"
LEDGER = "LEDGER"
_FILTER_BITS = 10  # per key, in RAM; one in a hundred files is looked into in vain
# A read wants one record and not its neighbours: blocks of a record or a few, found by the hash of
# their keys' first bytes (keys are digests) instead of a search among all blocks.
_BLOCK_BYTES = 1024
_PREFIX_BYTES = 8
# In RAM, as many as RocksDB takes by default; but its default cache keeps them in a list by last
# read, and a hit there waits for memory several times and for a mutex.
_BLOCK_CACHE_BYTES = 32 << 20
_ANY_CHARGE = 0  # the cache's table grows with what is in it, whatever the size of a block
_MEMTABLE_FILTER_SHARE = 0.02  # of it, so that a read passes by it as it passes by files
_WRITES_PER_CHMOD = 4096  # RocksDB makes its files with the process's own mask


class RocksStore:
    """Not thread-safe: the tier holds the lock."""

    def __init__(self, folder: Path) -> None:
        """Open or create the store in a subfolder of `folder`; a damaged one starts empty.

        Raises:
            ConfigError: another process, or another object of this one, uses the folder.
        """
        self._folder = folder / FORMAT_FOLDER
        self._num_writes = 0
        self.num_errors = 0
        self.first_error: str | None = None
        self._db: Rdict | None = None
        self._ledger: Ledger | None = None
        self._is_closed = False
        # RocksDB met damage as it merged files, and takes nothing more: only `clear` helps.
        self.is_damaged = False
        self._owes_forgetting = False  # what could not be made invalid yet
        self._open()
        self._tighten()

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def read(self, key: bytes) -> bytes | None:
        """The stored bytes; None after a failed read.

        Raises:
            DamagedError: RocksDB's own checksum does not fit, or there is nothing under `key`.
        """
        if self._db is None:
            self.num_errors += 1
            return None
        try:
            stored: bytes | None = self._db.get(key)
        except Exception as error:
            if not _is_stores(error):
                raise
            if self._is_damage(error):
                raise DamagedError(str(error)) from error
            self._count_error("read", error)
            return None
        if stored is None:
            raise DamagedError("a resident record is not on disk")
        return stored

    def enter(self) -> Ticket | None:
        """What a record that is now to be written must name to be valid; None after a failure."""
        if self._ledger is None:
            self.num_errors += 1
            return None
        try:
            return self._ledger.enter()
        except OSError as error:
            self._count_error("write", error)
            return None

    def is_valid(self, place: int, number: int) -> bool:
        """Whether the record that names this ticket is not deleted; one that is may still be on
        disk."""
        return self._ledger is not None and self._ledger.has(place, number)

    def write(self, key: bytes, stored: bytes) -> bool:
        """Whether it is stored now."""
        if self._db is None:
            self.num_errors += 1
            return False
        try:
            self._db.put(key, stored)
        except Exception as error:
            if not _is_stores(error):
                raise
            self.is_damaged = self.is_damaged or self._is_damage(error)
            self._count_error("write", error)
            return False
        self._num_writes += 1
        if self._num_writes % _WRITES_PER_CHMOD == 0:
            self._tighten()
        return True

    def delete(self, key: bytes, place: int | None = None) -> None:
        """Make sure that the record under `key` never comes back; `place` is its ticket's, None for
        what has none. Where the disk fails so that it could come back, everything is deleted."""
        if self._db is None or self._ledger is None:
            self.forget()
            return
        if place is not None:
            try:
                self._ledger.strike(place)
            except OSError as error:
                self._count_error("delete", error)
                self.discard()
                return
        try:
            self._db.delete(key)
        except Exception as error:
            if not _is_stores(error):
                raise
            self.is_damaged = self.is_damaged or self._is_damage(error)
            self._count_error("delete", error)  # it takes room, and is not valid

    def keep(self, places: Iterable[int]) -> None:
        """Make all records invalid but those whose tickets have these places."""
        if self._ledger is None:
            return
        try:
            self._ledger.keep(places)
        except OSError as error:
            self._count_error("delete", error)
            self.discard()

    def forget(self) -> None:
        """For a store that could not be opened, or not be gone on with: make sure that nothing that
        is in it comes back when it is opened again. What fails is tried again with the next call
        and by `close`."""
        if self._db is not None or self._is_closed:
            return
        try:
            strike_all(self._folder / LEDGER)
        except OSError as error:
            self._count_error("invalidate", error)
            if not self._owes_forgetting:
                _LOG.error("invalidated values of %s may come back: %s", self._folder, error)
            self._owes_forgetting = True
        else:
            self._owes_forgetting = False

    def sync(self) -> None:
        """Make all that was deleted outlast a power cut; an fsync."""
        if self._ledger is None:
            return
        try:
            self._ledger.sync()
        except OSError as error:
            self._count_error("sync", error)

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """All readable records: from the front up to a damaged block, then from the back."""
        assert self._db is not None
        in_order = ReadOptions()
        in_order.set_total_order_seek(True)
        cursor, last = self._db.iter(in_order), b""
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
        cursor = self._db.iter(in_order)
        cursor.seek_to_last()
        while cursor.valid() and cursor.key() > last:
            yield cursor.key(), cursor.value()
            cursor.prev()

    def clear(self) -> None:
        """Delete everything at once, and open what could not be opened or gone on with."""
        if self._is_closed:
            return
        self.discard()
        self.is_damaged = False
        if self._owes_forgetting:
            return
        try:
            self._open()
        except ConfigError as error:  # another process was faster
            self._count_error("open", error)
        self._tighten()

    def discard(self) -> None:
        """Delete everything and go on without the disk."""
        self._release()
        self.forget()
        self._destroy()

    def disk_bytes(self) -> int:
        """Bytes of all files: the log and records that are not yet compacted away included."""
        try:
            return sum(path.stat().st_size for path in self._folder.iterdir())
        except OSError:  # the folder is gone, or a file went while we looked
            return 0

    def close(self) -> None:
        """Release the folder at once; closing again does nothing."""
        if self._db is not None:
            self._release()
            self._tighten()
        elif self._owes_forgetting:
            self.forget()
        self._is_closed = True

    def _open(self) -> None:
        for is_retry in (False, True):
            try:
                self._folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._folder.mkdir(exist_ok=True, mode=0o700)
                self._folder.chmod(0o700)
                db = Rdict(str(self._folder), _options())
            except Exception as error:
                message = self._without_path(error)
                if "lock hold by" in message or "While lock file" in message:
                    problem = (
                        f"{self._folder.parent} is used by another process or cache; "
                        "expected a free one"
                    )
                    raise ConfigError("cache.folder", problem) from error
                self._count_error("open", error)
                is_damage = self._is_damage(error) or "No such file" in message
                if is_retry or not is_damage or not self._folder.is_dir():
                    return
                self.forget()
                self._destroy()  # a cache may start empty
                continue
            try:
                self._ledger = Ledger(self._folder / LEDGER)
            except OSError as error:
                self._count_error("open", error)
                db.close()
                return
            self._db = db
            self._delete_older()
            return

    def _release(self) -> None:
        db, self._db = self._db, None
        ledger, self._ledger = self._ledger, None
        try:
            if ledger is not None:
                ledger.close()
            if db is not None:
                db.close()
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("close", error)

    def _delete_older(self) -> None:
        """Delete stores of older layouts, but for one that a process of that version uses."""
        for number in range(_FORMAT):
            older = self._folder.with_name(f"format_{number}")
            if not (older / "CURRENT").is_file():
                continue
            try:
                Rdict.destroy(str(older))
                (older / LEDGER).unlink(missing_ok=True)
                older.rmdir()
            except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
                _LOG.info("%s is left: %s", older, error)

    def _destroy(self) -> None:
        """Delete RocksDB's files, and nothing else; not those that another process uses."""
        try:
            Rdict.destroy(str(self._folder))
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("discard", error)

    def _tighten(self) -> None:
        """Make the files' modes those of the folder too; what protects them is the folder's."""
        try:
            for path in self._folder.iterdir():
                path.chmod(0o600)
        except OSError:  # it went while we looked, or never was
            return

    def _is_damage(self, error: Exception) -> bool:
        return "Corruption" in self._without_path(error)

    def _without_path(self, error: Exception) -> str:
        """What RocksDB says, without the words that happen to be in the folder's name."""
        return str(error).replace(str(self._folder), "")

    def _count_error(self, operation: str, error: Exception) -> None:
        self.num_errors += 1
        if self.first_error is None:
            self.first_error = f"{operation}: {error}"
            _LOG.warning("the SSD cache tier failed (%s); going on without it", self.first_error)


def _is_stores(error: Exception) -> bool:
    """RocksDB raises bare Exception. What else comes while it works is somebody's signal handler's,
    such as a time limit, and goes on to who called."""
    return type(error) in (Exception, DbClosedError)


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())  # so that bytes are what we count
    # Of a damaged log all that is whole is taken: a deletion that is skipped is in the ledger.
    options.set_wal_recovery_mode(DBRecoveryMode.skip_any_corrupted_record())
    options.set_write_buffer_size(8 << 20)  # a killed store reopens soon
    table = BlockBasedOptions()
    table.set_bloom_filter(_FILTER_BITS, False)  # a read passes by the files that hold other keys
    table.set_block_size(_BLOCK_BYTES)
    table.set_block_cache(Cache.new_hyper_clock_cache(_BLOCK_CACHE_BYTES, _ANY_CHARGE))
    table.set_index_type(BlockBasedIndexType.hash_search())
    options.set_prefix_extractor(SliceTransform.create_fixed_prefix(_PREFIX_BYTES))
    options.set_memtable_prefix_bloom_ratio(_MEMTABLE_FILTER_SHARE)
    options.set_memtable_whole_key_filtering(True)
    options.set_block_based_table_factory(table)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    return options
