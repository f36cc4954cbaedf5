"""Values as bytes and back: typed, checksummed, and never able to run code on load.

Layout: CRC-32 of the rest (4 bytes, little endian), type tag (1 byte), payload. An array's payload
opens with its dtype (length byte, ASCII) and shape (dimension count, 8 bytes each); then its items
in C order. A nested value is JSON with bytes, arrays and tuples in it marked (`_marked`), the bytes
following. CRC-32 detects every flipped bit and every damaged run of up to 32 bits.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

_BYTES, _STR, _JSON, _ARRAY, _HALF, _NESTED = b"b", b"s", b"j", b"a", b"h", b"n"
_IS_BYTES, _IS_STR, _IS_JSON = _BYTES[0], _STR[0], _JSON[0]  # as a record's item is read
_CRC_BYTES = 4
_HEAD_BYTES = _CRC_BYTES + 1  # and the tag
_PLAIN_DTYPE_KINDS = "biufcSUmM"  # no object, no structured, no extension dtypes
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_MAX_DEPTH = 100  # so that who reads it has stack enough wherever it is called from
_MARK = "\0"  # the one key of a JSON object that stands for what JSON has not


class DamagedError(ValueError):
    """The bytes are not what was stored; the record counts as a miss."""


def encode(value: object, *, half: bool = False) -> bytes:
    """`value` as bytes: bytes, str, an array, None, bool, int, float, or lists, tuples and dicts
    with str keys made of those.

    Types are exact: a set or a numpy scalar would come back as something else. At most 100 levels
    deep, and with ints of as many digits as the interpreter turns into text.

    Args:
        half: keep a float32 array as float16, if all of it is in that range; it comes back as
            float32, rounded to 11 bits.

    Raises:
        TypeError: naming the type that cannot be stored.
    """
    body = _body(value, half)
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def decode(record: bytes) -> Any:
    """The value that `encode` was given; an array is a new, writable one.

    Raises:
        DamagedError: the checksum does not fit.
    """
    body = record[_CRC_BYTES:]
    if not body or zlib.crc32(body) != int.from_bytes(record[:_CRC_BYTES], "little"):
        raise DamagedError(f"checksum of a record of {len(record)} bytes does not fit")
    return decode_trusted(record)


def decode_trusted(record: bytes) -> Any:
    """The value of a record whose bytes are known to be whole: they never left this process's
    memory, or another checksum covers them."""
    tag = record[_CRC_BYTES]
    if tag == _IS_BYTES:
        return record[_HEAD_BYTES:]
    if tag == _IS_STR:
        return record[_HEAD_BYTES:].decode("utf-8", "surrogatepass")
    if tag == _IS_JSON:
        return json.loads(record[_HEAD_BYTES:].decode("ascii"))
    payload = memoryview(record)[_HEAD_BYTES:]
    if tag == _ARRAY[0]:
        return _array(payload)
    if tag == _HALF[0]:
        return _array(payload).astype(np.float32)
    if tag == _NESTED[0]:
        return _nested(payload)
    raise DamagedError(f"unknown type tag {tag}")


def shareable(record: bytes) -> bool:
    """Whether everybody may be given the same object: nobody can change the value, and it takes no
    more room than its record. (A str that is not ASCII may: four bytes for each character, and a
    second copy in UTF-8 once somebody asks for one.)"""
    tag = record[_CRC_BYTES]
    if tag == _IS_STR:
        return record[_HEAD_BYTES:].isascii()
    return tag == _IS_BYTES or (tag == _IS_JSON and record[_HEAD_BYTES] not in b"[{")


def is_rounded(record: bytes) -> bool:
    """Whether what comes back is not quite what was stored."""
    return record[_CRC_BYTES] == _HALF[0]


def is_text(record: bytes) -> bool:
    """Whether the value is a text, or structured text."""
    return record[4:5] in (_STR, _JSON)


def _body(value: object, half: bool) -> bytes:
    if type(value) is bytes:
        return _BYTES + value
    if type(value) is str:
        return _STR + value.encode("utf-8", "surrogatepass")
    if type(value) is np.ndarray:
        if half and value.dtype == np.float32:
            with np.errstate(over="ignore"):
                rounded = value.astype(np.float16)
            if np.isfinite(rounded).all():
                return _HALF + _array_body(rounded)
        return _ARRAY + _array_body(value)
    blobs: list[bytes] = []
    marked = _marked(value, blobs)
    if not blobs and marked is value:
        return _JSON + _dumped(value)
    text = _dumped(marked)
    sizes = struct.pack(f"<QQ{len(blobs)}Q", len(text), len(blobs), *map(len, blobs))
    return b"".join([_NESTED, sizes, text, *blobs])


def _dumped(value: object) -> bytes:
    try:
        return _to_json(value).encode("ascii")
    except ValueError as error:  # the one thing left that json refuses
        raise TypeError(f"cannot cache a value with an int of too many digits: {error}") from error


def _marked(value: object, blobs: list[bytes], depth: int = 0) -> object:
    """`value` itself if it is JSON, else with what JSON has not replaced: {"\\0": [type, ...]}.

    Raises:
        TypeError: what would come back as something else.
    """
    cls = type(value)
    if value is None or cls in (str, int, float, bool):
        return value
    if depth >= _MAX_DEPTH:
        raise TypeError(f"cannot cache a value nested in itself, or over {_MAX_DEPTH} levels deep")
    if cls is dict:
        assert isinstance(value, dict)
        for key in value:
            if type(key) is not str:
                raise TypeError(f"cannot cache a dict with a key of type {_type_name(key)}")
        items = {key: _marked(item, blobs, depth + 1) for key, item in value.items()}
        if _MARK in items:
            return {_MARK: ["dict", list(items), list(items.values())]}
        return value if all(items[key] is value[key] for key in items) else items
    if cls is list or cls is tuple:
        assert isinstance(value, list | tuple)
        parts = [_marked(item, blobs, depth + 1) for item in value]
        if cls is tuple:
            return {_MARK: ["tuple", parts]}
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if cls is bytes or cls is np.ndarray:
        is_bytes = isinstance(value, bytes)
        blobs.append(value if is_bytes else _array_body(value))  # type: ignore[arg-type]
        return {_MARK: ["bytes" if is_bytes else "array", len(blobs) - 1]}
    raise TypeError(
        f"cannot cache a value of type {_type_name(value)}; expected bytes, str, ndarray, None, "
        "bool, int, float, or a list, tuple or dict of those"
    )


def _nested(payload: memoryview) -> Any:
    text_bytes, num_blobs = struct.unpack_from("<QQ", payload)
    sizes = struct.unpack_from(f"<{num_blobs}Q", payload, 16)
    position = 16 + 8 * num_blobs
    text = bytes(payload[position : position + text_bytes])
    position += text_bytes
    blobs = []
    for size in sizes:
        blobs.append(payload[position : position + size])
        position += size

    def unmark(found: dict[str, Any]) -> Any:
        mark = found.get(_MARK)
        if mark is None:
            return found
        if mark[0] == "tuple":
            return tuple(mark[1])
        if mark[0] == "dict":
            return dict(zip(mark[1], mark[2], strict=True))
        blob = blobs[mark[1]]
        return bytes(blob) if mark[0] == "bytes" else _array(blob)

    return json.loads(text, object_hook=unmark)


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


def _array_body(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.kind not in _PLAIN_DTYPE_KINDS or np.dtype(array.dtype.str) != array.dtype:
        raise TypeError(f"cannot cache an array of dtype {array.dtype}")
    dtype = array.dtype.str.encode("ascii")
    header = struct.pack(f"<B{len(dtype)}sB", len(dtype), dtype, array.ndim)
    return header + struct.pack(f"<{array.ndim}Q", *array.shape) + array.tobytes()


def _array(payload: memoryview) -> np.ndarray[Any, Any]:
    dtype_end = 1 + payload[0]
    dtype = np.dtype(str(payload[1:dtype_end], "ascii"))
    ndim = payload[dtype_end]
    items_start = dtype_end + 1 + 8 * ndim
    shape = struct.unpack(f"<{ndim}Q", payload[dtype_end + 1 : items_start])
    return np.ndarray(shape, dtype=dtype, buffer=bytes(payload[items_start:])).copy()
