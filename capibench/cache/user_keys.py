"""What a user may call a cached thing, as the strings that go into its key."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from capibench.cache.envelope import encode

Key = object


def key_parts(key: Key) -> tuple[str, str]:
    """(type, name) of a key: equal for equal keys, different for different ones, whatever their
    types (1, 1.0, True and "1" are four keys). A str is its own name, which globs match.

    Args:
        key: str, bytes, int, float, bool, None, an array (by dtype, shape and content), or lists,
            tuples and dicts with str keys made of those.

    Raises:
        TypeError: naming the type that cannot be a key.
        ValueError: not a number, which equals nothing.
    """
    if type(key) is str:
        return "str", key
    if type(key) is float and math.isnan(key):
        raise ValueError("key: got nan; expected a key that equals itself")
    if isinstance(key, np.ndarray):
        key = np.ascontiguousarray(key)
    try:
        record = encode(_sorted(key))
    except TypeError as error:
        raise TypeError(f"key: {error}".replace("cannot cache a value", "got a key")) from error
    return type(key).__name__, hashlib.blake2b(record, digest_size=16).hexdigest()


def _sorted(key: Key) -> Key:
    """Dicts are equal whatever their order."""
    if type(key) is dict:
        return {name: _sorted(key[name]) for name in sorted(key)}
    if type(key) is list:
        return [_sorted(item) for item in key]
    if type(key) is tuple:
        return tuple(_sorted(item) for item in key)
    return key
