"""What was read from the SSD tier, written down in blocks, so that a reopened tier knows again
what is popular and what is recent, whatever its policy makes of that.

A block is: CRC-32 of the rest (4 bytes), then 32 bytes per read (key, event number, time).
Insertions and reads are numbered by one counter; replayed in that order they rebuild the policy's
state.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from capibench.cache.keys import KEY_BYTES

_READ = struct.Struct(f"<{KEY_BYTES}sQd")  # key, event number, time
_CRC_BYTES = 4
READS_PER_BLOCK = 128  # so many reads are forgotten at most when the process is killed


class AccessLog:
    """Collects reads until there are enough for a block."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []

    def note(self, key: bytes, event: int, now: float) -> bytes | None:
        """`key` was read. Returns a block that is now to be written."""
        self._pending.append(_READ.pack(key, event, now))
        return self.flush() if len(self._pending) == READS_PER_BLOCK else None

    def flush(self) -> bytes | None:
        """The block of what is not written yet; None when there is nothing."""
        if not self._pending:
            return None
        body = b"".join(self._pending)
        self._pending.clear()
        return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def reads(block: bytes) -> Iterator[tuple[int, float, bytes]]:
    """(event number, time, key) of each read in a block; nothing from a damaged one."""
    body = block[_CRC_BYTES:]
    if len(body) % _READ.size or zlib.crc32(body) != int.from_bytes(block[:_CRC_BYTES], "little"):
        return
    for key, event, at_s in _READ.iter_unpack(body):
        yield event, at_s, key
