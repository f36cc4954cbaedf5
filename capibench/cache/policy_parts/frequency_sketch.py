"""How often a key was asked for lately, resident or not, in one byte per counter.

The frequency histogram of TinyLFU (Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache
admission policy", ACM Transactions on Storage 13(4), 2017, sections 3.2 and 3.3): a count-min
sketch (Cormode and Muthukrishnan 2005) with four rows whose counters stop at 15 and are all halved
after a fixed number of accesses per entry, so that old popularity fades.

Departures: no doorkeeper; and the number of entries is not known in advance, so that rows double
when it grows. A row is repeated then, which leaves every estimate as it was.
"""

from __future__ import annotations

from zlib import crc32

_FIRST_WIDTH = 64
_COUNTERS_PER_ENTRY = 4  # in each row, as in Caffeine; with one, hot keys drown the others
_MAX_COUNT = 15
_HALF = bytes(count >> 1 for count in range(256))
# Odd multipliers (the primes of xxHash) spread one 32-bit hash differently over each row; the
# middle bits of a product are the mixed ones.
_SPREAD_1, _SPREAD_2, _SPREAD_3, _SPREAD_4 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F
_SHIFT = 15


class FrequencySketch:
    """Estimates are never too low between two halvings, and at most 15."""

    __slots__ = ("_mask", "_num_added", "_num_entries", "_rows", "_sample_factor")

    def __init__(self, sample_factor: int) -> None:
        """All counters are halved every `sample_factor` accesses per entry."""
        self._sample_factor = sample_factor
        self._num_entries = _FIRST_WIDTH // _COUNTERS_PER_ENTRY
        self._num_added = 0
        self._mask = _FIRST_WIDTH - 1
        self._rows = tuple(bytearray(_FIRST_WIDTH) for _ in range(4))

    def __len__(self) -> int:
        return len(self._rows) * (self._mask + 1)

    def reserve(self, num_entries: int) -> None:
        """As many entries may be resident: rows get counters for them."""
        if num_entries <= self._num_entries:
            return
        self._num_entries = num_entries
        while _COUNTERS_PER_ENTRY * num_entries > self._mask + 1:
            self._mask = 2 * self._mask + 1
            self._rows = tuple(row + row for row in self._rows)

    def add(self, key: bytes) -> None:
        """`key` was asked for."""
        mask, digest = self._mask, crc32(key)
        first, second, third, fourth = self._rows
        # One access, four counters: written out, because this is most of what the policy costs.
        place = digest * _SPREAD_1 >> _SHIFT & mask
        if first[place] < _MAX_COUNT:
            first[place] += 1
        place = digest * _SPREAD_2 >> _SHIFT & mask
        if second[place] < _MAX_COUNT:
            second[place] += 1
        place = digest * _SPREAD_3 >> _SHIFT & mask
        if third[place] < _MAX_COUNT:
            third[place] += 1
        place = digest * _SPREAD_4 >> _SHIFT & mask
        if fourth[place] < _MAX_COUNT:
            fourth[place] += 1
        self._num_added += 1
        if self._num_added >= self._sample_factor * self._num_entries:
            self._rows = tuple(row.translate(_HALF) for row in self._rows)
            self._num_added //= 2

    def estimate(self, key: bytes) -> int:
        """About how often `key` was asked for lately, 0 to 15."""
        mask, digest = self._mask, crc32(key)
        first, second, third, fourth = self._rows
        return min(
            first[digest * _SPREAD_1 >> _SHIFT & mask],
            second[digest * _SPREAD_2 >> _SHIFT & mask],
            third[digest * _SPREAD_3 >> _SHIFT & mask],
            fourth[digest * _SPREAD_4 >> _SHIFT & mask],
        )
