"""Smaller records on SSD, where that pays: zstd, with a dictionary learned from the first records
of a type, because short texts repeat each other more than themselves.

Per type: while records shrink by less than `min_saving`, only every 64th is tried. What that
brought, and what it cost in seconds, is counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import zstandard

from capibench.cache.keys import CacheType
from capibench.cache.tiers.envelope import DamagedError, is_text

RAW, ZSTD, ZSTD_WITH_DICTIONARY = 0, 1, 2  # stored with the record
_TRIES_BEFORE_JUDGING = 16
_RETRY_EVERY = 64
_MIN_DICTIONARY_BYTES = 256  # zstd's own lower bound
_SAMPLES_PER_DICTIONARY = 10  # as many bytes of text as zstd's manual advises at least


@dataclass(frozen=True)
class Compression:
    """When and how hard records are compressed on their way to the SSD."""

    level: int  # zstd's: 1 fastest to 19 smallest
    min_saving: float  # share of a record that must be saved; below it is stored as it is
    dictionary_kib: int  # size of the dictionary learned for each type of text; 0: none
    num_samples: int  # texts of a type from which its dictionary is learned

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 19:
            raise ValueError(f"level: got {self.level}; expected 1 to 19")
        if not 0 <= self.min_saving < 1:
            raise ValueError(f"min_saving: got {self.min_saving}; expected 0 to below 1")
        if self.dictionary_kib < 0:
            raise ValueError(f"dictionary_kib: got {self.dictionary_kib}; expected at least 0")
        if self.num_samples < 8:
            raise ValueError(f"num_samples: got {self.num_samples}; expected at least 8")


@dataclass(slots=True)
class Effect:
    """What compressing the records of one type did."""

    records: int = 0
    compressed: int = 0
    not_tried: int = 0  # because it had not paid before
    bytes_before: int = 0
    bytes_after: int = 0
    compress_s: float = 0.0
    decompress_s: float = 0.0
    dictionary_bytes: int = 0
    train_s: float = 0.0


class Compressor:
    """Of one tier. Without settings it stores records as they are, and still reads what a tier
    with settings has stored. Not thread-safe: the tier holds the lock."""

    def __init__(self, settings: Compression | None) -> None:
        self._settings = settings
        level = 3 if settings is None else settings.level
        self._plain = zstandard.ZstdCompressor(level=level)
        self._level = level
        self._reader = zstandard.ZstdDecompressor()
        self._with_dictionary: dict[
            CacheType, tuple[zstandard.ZstdCompressor, zstandard.ZstdDecompressor]
        ] = {}
        self._samples: dict[CacheType, list[bytes]] = {}
        self.effects: dict[CacheType, Effect] = {kind: Effect() for kind in CacheType}

    def pack(self, kind: CacheType, record: bytes) -> tuple[int, bytes]:
        """The codec that was used, and what to store."""
        settings, effect = self._settings, self.effects[kind]
        if settings is None:
            return RAW, record
        effect.records += 1
        effect.bytes_before += len(record)
        saved = effect.bytes_before - effect.bytes_after - len(record)
        tried = effect.records - effect.not_tried
        has_not_paid = saved < settings.min_saving * effect.bytes_before / 2
        if has_not_paid and tried > _TRIES_BEFORE_JUDGING and effect.records % _RETRY_EVERY:
            effect.not_tried += 1
            effect.bytes_after += len(record)
            return RAW, record
        begin_s = perf_counter()
        codecs = self._with_dictionary.get(kind)
        packed = (self._plain if codecs is None else codecs[0]).compress(record)
        effect.compress_s += perf_counter() - begin_s
        if len(packed) > (1 - settings.min_saving) * len(record):
            effect.bytes_after += len(record)
            return RAW, record
        effect.compressed += 1
        effect.bytes_after += len(packed)
        return (ZSTD if codecs is None else ZSTD_WITH_DICTIONARY), packed

    def unpack(self, kind: CacheType, codec: int, stored: bytes, num_bytes: int) -> bytes:
        """The record of `num_bytes` that was packed; `stored` are whole, by a checksum.

        Raises:
            DamagedError: their dictionary is gone, or it is another one (a frame names its own).
        """
        if codec == RAW:
            return stored
        codecs = self._with_dictionary.get(kind)
        if codec == ZSTD:
            reader = self._reader
        elif codec == ZSTD_WITH_DICTIONARY and codecs is not None:
            reader = codecs[1]
        else:
            raise DamagedError(f"a record of codec {codec}, which cannot be read")
        begin_s = perf_counter()
        try:
            record = reader.decompress(stored)
        except zstandard.ZstdError as error:
            raise DamagedError(str(error)) from error
        if len(record) != num_bytes:
            raise DamagedError("a compressed record has another size than its header states")
        self.effects[kind].decompress_s += perf_counter() - begin_s
        return record

    def learn(self, kind: CacheType, record: bytes) -> bytes | None:
        """Look at a record that is to be stored. Returns a dictionary when one was learned from
        it and those before: to be stored first, then handed to `load_dictionary`."""
        settings = self._settings
        if (
            settings is None
            or not settings.dictionary_kib
            or kind in self._with_dictionary
            or not is_text(record)
        ):
            return None
        samples = self._samples.setdefault(kind, [])
        samples.append(record)
        if len(samples) < settings.num_samples:
            return None
        begin_s = perf_counter()
        size = min(settings.dictionary_kib << 10, sum(map(len, samples)) // _SAMPLES_PER_DICTIONARY)
        self._samples[kind] = []
        if size < _MIN_DICTIONARY_BYTES:  # tiny texts: wait for as many again
            return None
        try:
            dictionary = zstandard.train_dictionary(size, [*samples], level=self._level).as_bytes()
        except zstandard.ZstdError:  # nothing in common to be learned
            return None
        finally:
            self.effects[kind].train_s += perf_counter() - begin_s
        return dictionary

    def load_dictionary(self, kind: CacheType, dictionary: bytes) -> None:
        """Use a dictionary that is stored, for this type, from now on."""
        learned = zstandard.ZstdCompressionDict(dictionary)
        self._with_dictionary[kind] = (
            zstandard.ZstdCompressor(level=self._level, dict_data=learned),
            zstandard.ZstdDecompressor(dict_data=learned),
        )
        self.effects[kind].dictionary_bytes = len(dictionary)

    def forget(self) -> None:
        """The stored dictionaries are gone."""
        self._with_dictionary.clear()
        self._samples.clear()

    def stats(self) -> dict[str, dict[str, Any]] | None:
        """By type, with the ratio before to after; None where nothing is ever compressed."""
        if self._settings is None:
            return None
        return {
            kind.value: {
                **asdict(effect),
                "ratio": effect.bytes_before / effect.bytes_after if effect.bytes_after else None,
            }
            for kind, effect in self.effects.items()
            if effect.records
        }
