"""Values as bytes and back: typed, checksummed, and never able to run code on load.

Layout: CRC-32 of the rest (4 bytes, little endian), type tag (1 byte), payload. An array's payload
opens with its dtype (length byte, ASCII) and shape (dimension count, 8 bytes each); then its items
in C order. CRC-32 detects every flipped bit and every damaged run of up to 32 bits.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

_BYTES, _STR, _JSON, _ARRAY = b"b", b"s", b"j", b"a"
_CRC_BYTES = 4
_PLAIN_DTYPE_KINDS = "biufcSUmM"  # no object, no structured, no extension dtypes


class DamagedError(ValueError):
    """The bytes are not what was stored; the record counts as a miss."""


def encode(value: object) -> bytes:
    """`value` (bytes, str, array, or JSON made of dict, list, str, numbers, bool, None) as bytes.

    Types are exact: a tuple or a numpy scalar would come back as something else.

    Raises:
        TypeError: naming the type that cannot be stored.
    """
    body = _body(value)
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "little") + body


def decode(record: bytes) -> Any:
    """The value that `encode` was given; an array is a new, writable one.

    Raises:
        DamagedError: the checksum does not fit.
    """
    body = memoryview(record)[_CRC_BYTES:]
    if not body or zlib.crc32(body) != int.from_bytes(record[:_CRC_BYTES], "little"):
        raise DamagedError(f"checksum of a record of {len(record)} bytes does not fit")
    tag, payload = bytes(body[:1]), body[1:]
    if tag == _BYTES:
        return bytes(payload)
    if tag == _STR:
        return str(payload, "utf-8", "surrogatepass")
    if tag == _JSON:
        return json.loads(bytes(payload))
    if tag == _ARRAY:
        return _array(payload)
    raise DamagedError(f"unknown type tag {tag!r}")


def _body(value: object) -> bytes:
    if type(value) is bytes:
        return _BYTES + value
    if type(value) is str:
        return _STR + value.encode("utf-8", "surrogatepass")
    if type(value) is np.ndarray:
        return _ARRAY + _array_body(value)
    _check_json(value)
    return _JSON + json.dumps(value, separators=(",", ":")).encode("ascii")


def _check_json(value: object) -> None:
    """Refuse what `json` would silently turn into something else, such as tuples or int keys."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"cannot cache a dict with a key of type {_type_name(key)}")
            _check_json(item)
    elif type(value) is list:
        for item in value:
            _check_json(item)
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(
            f"cannot cache a value of type {_type_name(value)}; "
            "expected bytes, str, ndarray, dict, list, int, float, bool or None"
        )


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
