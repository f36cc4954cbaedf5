"""The bytes of one record on SSD, every one of them covered by a checksum.

Layout: CRC-32 over key, header, labels and payload (4 bytes); header (`_HEADER`); labels (JSON of
name and tags, or nothing); payload: the value's envelope, as it is or compressed. The envelope has
a checksum of its own for who has no other; a compressed one names its dictionary.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.tiers.envelope import DamagedError
from capibench.cache.tiers.ledger import NUMBER_BYTES, Ticket
from capibench.cache.tiers.residents import Entry

# type, codec, ticket's place and number, event number, cost_s, inserted_s, expires_s,
# fresh_until_s, label and record bytes
_HEADER = struct.Struct("<BBIQQddddIQ")
# checksum, codec, ticket, label and record bytes: what a read needs
_READ = struct.Struct("<IxBIQ40xIQ")
_CRC_BYTES = 4
_LABELS_START = _CRC_BYTES + _HEADER.size
_MAX_EVENT = 1 << 62  # so many are counted after it
_KINDS = tuple(CacheType)  # new types are appended: a record stores the position
_POSITIONS = {kind: position for position, kind in enumerate(_KINDS)}
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # charged as UTF-8
# ours, the ledger's, and RocksDB's own per record
OVERHEAD_BYTES = _LABELS_START + NUMBER_BYTES + 16


class StoredRecord(NamedTuple):
    """A whole record, taken apart."""

    entry: Entry
    packed: bytes  # its record as it is stored
    codec: int
    num_bytes: int  # of the record before it was compressed
    ticket: Ticket  # the record is valid while the ledger has it
    event: int  # number among the insertions and reads of the store
    inserted_s: float


def pack_record(
    key: bytes,
    entry: Entry,
    codec: int,
    packed: bytes,
    num_bytes: int,
    ticket: Ticket,
    event: int,
    inserted_s: float,
) -> bytes:
    """The bytes to write under `key`; `packed` is a record of `num_bytes` as `codec` leaves it."""
    kind, cost_s, expires_s, fresh_until_s, name, tags = entry
    labels = _to_json([name, tags]).encode("utf-8", "surrogatepass") if name or tags else b""
    header = _HEADER.pack(
        _POSITIONS[kind],
        codec,
        *ticket,
        event,
        cost_s,
        inserted_s,
        expires_s,
        fresh_until_s,
        len(labels),
        num_bytes,
    )
    crc = zlib.crc32(packed, zlib.crc32(labels, zlib.crc32(header, zlib.crc32(key))))
    return b"".join((crc.to_bytes(_CRC_BYTES, "little"), header, labels, packed))


def packed_value(key: bytes, stored: bytes) -> tuple[int, int, int, bytes, int]:
    """Ticket (place and number), codec, packed bytes and unpacked size of the value: all that a
    read does not know already.

    Raises:
        DamagedError: a checksum does not fit, or the record is another key's.
    """
    if len(stored) >= _LABELS_START:
        crc, codec, place, number, label_bytes, num_bytes = _READ.unpack_from(stored)
        if zlib.crc32(stored[_CRC_BYTES:], zlib.crc32(key)) == crc:
            return place, number, codec, stored[_LABELS_START + label_bytes :], num_bytes
    raise DamagedError(f"a record of {len(stored)} bytes is not what was stored under its key")


def unpack_record(key: bytes, stored: bytes) -> StoredRecord:
    """What `pack_record` was given.

    Raises:
        DamagedError: a checksum does not fit, the record is another key's, or it is whole but
            says what no record of this version says.
    """
    place, number, codec, packed, num_bytes = packed_value(key, stored)
    ticket = Ticket(place, number)
    kind, _, _, _, event, cost_s, inserted_s, expires_s, fresh_until_s, label_bytes, _ = (
        _HEADER.unpack_from(stored, _CRC_BYTES)
    )
    if kind >= len(_KINDS) or event > _MAX_EVENT:
        raise DamagedError(f"a record of type {kind} and event {event}; expected known ones")
    try:
        name, tags = _labels(stored[_LABELS_START : _LABELS_START + label_bytes])
    except ValueError as error:
        raise DamagedError(f"labels of a record: {error}") from error
    entry = Entry(_KINDS[kind], cost_s, expires_s, fresh_until_s, name, tuple(tags))
    return StoredRecord(entry, packed, codec, num_bytes, ticket, event, inserted_s)


def _labels(stored: bytes) -> tuple[str, list[str]]:
    if not stored:
        return "", []
    labels = json.loads(stored)
    match labels:
        case [str(), list(tags)] if all(isinstance(tag, str) for tag in tags):
            return labels[0], tags
    raise ValueError(f"got {labels!r:.50}; expected a name and its tags")


def claimed_kind(stored: bytes) -> CacheType:
    """The type that a damaged record claims, for the count alone."""
    position = stored[_CRC_BYTES] if len(stored) > _CRC_BYTES else 0
    return _KINDS[position] if position < len(_KINDS) else _KINDS[0]
