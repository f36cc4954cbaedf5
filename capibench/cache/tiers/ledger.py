"""Which records on SSD are valid: one number per place, in a file of our own beside RocksDB.

With a damaged log or manifest RocksDB goes back to an earlier state, or skips a part of the later
ones, and what was deleted or overwritten since is there again. So a record names its ticket, a
place in this file and a number drawn for it alone, and is valid only while the file has that
number there. A damaged file of any kind, this one too, then makes valid records invalid and never
the other way round.
"""

from __future__ import annotations

import os
import random
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NUMBER_BYTES = 8
_FREE = 0
_FREE_BYTES = bytes(NUMBER_BYTES)
_GROWTH = 512
_pwrite = os.pwrite
_new = tuple.__new__  # a NamedTuple's own constructor takes twice as long


class Ticket(NamedTuple):
    """What makes a record valid."""

    place: int
    number: int


class Ledger:
    """Its numbers are in RAM as well. Whatever writes raises OSError where the disk fails. Striking
    takes no room on the disk, so it works when that is full. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or create the file."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            content = path.read_bytes()
        except OSError:
            os.close(self._fd)
            raise
        self._numbers = array("Q", content[: len(content) // NUMBER_BYTES * NUMBER_BYTES])
        self._free = [place for place, number in enumerate(self._numbers) if number == _FREE]
        self._draw = random.Random().getrandbits  # seeded anew, so that no number comes twice

    def has(self, place: int, number: int) -> bool:
        """Whether the record that names them is valid."""
        try:
            return self._numbers[place] == number != _FREE
        except IndexError:
            return False

    def enter(self) -> Ticket:
        """A ticket that is valid from now on."""
        if not self._free:
            self._grow()
        place = self._free[-1]
        number = self._draw(64) or 1
        self._write(number.to_bytes(8, sys.byteorder), place)
        self._numbers[self._free.pop()] = number
        return _new(Ticket, (place, number))

    def strike(self, place: int) -> None:
        """The record of that place is not valid any more."""
        if place >= len(self._numbers):
            return  # struck with all others
        self._write(_FREE_BYTES, place)
        self._numbers[place] = _FREE
        self._free.append(place)  # last: if an exception comes between, it is lost until `keep`

    def keep(self, places: Iterable[int]) -> None:
        """Strike all others."""
        kept = array("Q", _FREE_BYTES * len(self._numbers))
        for place in places:
            if place < len(kept):  # else it was discarded
                kept[place] = self._numbers[place]
        while kept and kept[-1] == _FREE:
            kept.pop()
        os.ftruncate(self._fd, len(kept) * NUMBER_BYTES)
        self._write(kept.tobytes(), 0)
        self._numbers = kept
        self._free = [place for place, number in enumerate(kept) if number == _FREE]

    def sync(self) -> None:
        """Make it outlast a power cut; an fsync."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Once."""
        os.close(self._fd)

    def _grow(self) -> None:
        """By many places: a write at the end of a file costs more than one in it."""
        first = len(self._numbers)
        self._write(_FREE_BYTES * _GROWTH, first)
        self._numbers.extend([_FREE] * _GROWTH)
        self._free.extend(range(first + _GROWTH - 1, first - 1, -1))

    def _write(self, content: bytes, place: int) -> None:
        written = _pwrite(self._fd, content, place * NUMBER_BYTES)
        if written != len(content):
            raise OSError(f"wrote {written} of {len(content)} bytes of the ledger")


def strike_all(path: Path) -> None:
    """Make every record invalid whose ledger is at `path`; needs no open file.

    Raises:
        OSError: it may not be changed, so that they still are valid.
    """
    try:
        os.truncate(path, 0)
    except (FileNotFoundError, NotADirectoryError):
        return  # no ledger, no valid record
