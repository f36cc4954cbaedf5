"""RocksDB, as a store of bytes that may fail at any time: every failure is counted, none raised.

A write-ahead log and no fsync per write: a killed process loses nothing, a power cut what was
written in the last moments. What was invalidated is synced, so that it does not come back. The
folder is for its owner alone (0700, files 0600).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    SliceTransform,
)

from capibench.cache.envelope import DamagedError
from capibench.errors import ConfigError

_LOG = logging.getLogger(__name__)
# Bytes in another layout are another folder: never read, never in the way.
FORMAT_FOLDER = "format_2"
_FILTER_BITS = 10  # per key, in RAM; one in a hundred files is looked into in vain
# A read wants one record and not its neighbours: blocks of a record or a few, found by the hash of
# their keys' first bytes (keys are digests) instead of a search among all blocks.
_BLOCK_BYTES = 1024
_PREFIX_BYTES = 8
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
        self._db: Rdict | None = self._open(folder)
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
            if "Corruption" in str(error):
                raise DamagedError(str(error)) from error
            self._count_error("read", error)
            return None
        if stored is None:
            raise DamagedError("a resident record is not on disk")
        return stored

    def write(self, key: bytes, stored: bytes) -> bool:
        """Whether it is stored now."""
        if self._db is None:
            self.num_errors += 1
            return False
        try:
            self._db.put(key, stored)
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("write", error)
            return False
        self._num_writes += 1
        if self._num_writes % _WRITES_PER_CHMOD == 0:
            self._tighten()
        return True

    def delete(self, key: bytes) -> None:
        """Make sure that `key` never comes back. Where a record cannot be deleted (the disk is
        full), the whole store is: what was invalidated must not rise when it is opened again."""
        if self._db is None:
            return
        try:
            self._db.delete(key)
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("delete", error)
            self._release()
            self._discard()

    def sync(self) -> None:
        """Make all that was written and deleted outlast a power cut; an fsync."""
        if self._db is None:
            return
        try:
            self._db.flush_wal(sync=True)
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
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
        """Delete everything at once."""
        if self._db is None:
            return
        self._release()
        self._discard()
        self._db = self._open(self._folder.parent)
        self._tighten()

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

    def _open(self, folder: Path) -> Rdict | None:
        for is_retry in (False, True):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._folder.mkdir(exist_ok=True, mode=0o700)
                self._folder.chmod(0o700)
                return Rdict(str(self._folder), _options())
            except Exception as error:
                message = str(error)
                if "lock hold by" in message or "While lock file" in message:
                    problem = f"{folder} is used by another process or cache; expected a free one"
                    raise ConfigError("cache.folder", problem) from error
                self._count_error("open", error)
                is_damaged = "Corruption" in message or "No such file" in message
                if is_retry or not is_damaged or not self._folder.is_dir():
                    return None
                self._discard()  # a cache may start empty
        return None

    def _release(self) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        try:
            db.close()
        except Exception as error:  # noqa: BLE001  RocksDB raises bare Exception
            self._count_error("close", error)

    def _discard(self) -> None:
        """Delete the store, at once as whoever opens it next sees it."""
        discarded = self._folder.with_name("discarded")
        try:
            shutil.rmtree(discarded, ignore_errors=True)
            self._folder.rename(discarded)
        except OSError as error:
            self._count_error("discard", error)
        shutil.rmtree(discarded, ignore_errors=True)

    def _tighten(self) -> None:
        try:
            for path in self._folder.iterdir():
                path.chmod(0o600)
        except OSError:  # it went while we looked, or never was; the folder's mode still holds
            return

    def _count_error(self, operation: str, error: Exception) -> None:
        self.num_errors += 1
        if self.first_error is None:
            self.first_error = f"{operation}: {error}"
            _LOG.warning("the SSD cache tier failed (%s); going on without it", self.first_error)


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())  # so that bytes are what we count
    # A damaged log is not opened, and the cache starts empty: to skip a record, which may be that
    # of a deletion, would bring back what was invalidated. A log's torn end is a kill's own work.
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_write_buffer_size(8 << 20)  # a killed store reopens soon
    table = BlockBasedOptions()
    table.set_bloom_filter(_FILTER_BITS, False)  # a read passes by the files that hold other keys
    table.set_block_size(_BLOCK_BYTES)
    table.set_index_type(BlockBasedIndexType.hash_search())
    options.set_prefix_extractor(SliceTransform.create_fixed_prefix(_PREFIX_BYTES))
    options.set_memtable_prefix_bloom_ratio(_MEMTABLE_FILTER_SHARE)
    options.set_memtable_whole_key_filtering(True)
    options.set_block_based_table_factory(table)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    return options
