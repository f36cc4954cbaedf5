"""What a user may call a cached thing, as the strings that go into its key."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from capibench.cache.tiers.envelope import encode

Key = object


def key_parts(key: Key) -> tuple[str, str]:
    """(type, name) of a key, the same for keys of the same type and content (1, 1.0, True and "1"
    are four keys; so are 0.0 and -0.0 two, for what is computed from them may differ). A str is its
    own name, which globs match.

    Args:
        key: str, bytes, int, float, bool, None, an array (by dtype, shape and content; no
            subclass, whose mask or unit would be lost), or lists, tuples and dicts with str keys
            made of those. Not a number is none, wherever it is: it equals nothing.

    Raises:
        TypeError: naming the type that cannot be a key.
        ValueError: not a number.
    """
    if type(key) is str:
        return "str", key
    try:
        record = encode(_sorted(key))
    except (TypeError, RecursionError) as error:
        problem = str(error) if isinstance(error, TypeError) else "cannot cache a value in itself"
        raise TypeError(f"key: {problem}".replace("cannot cache", "cannot use")) from error
    return type(key).__name__, hashlib.blake2b(record, digest_size=16).hexdigest()


def _sorted(key: Key) -> Key:
    """Dicts are equal whatever their order."""
    if type(key) is dict:
        if not all(type(name) is str for name in key):
            raise TypeError("cannot cache a dict with a key that is not a str")
        return {name: _sorted(key[name]) for name in sorted(key)}
    if type(key) is list:
        return [_sorted(item) for item in key]
    if type(key) is tuple:
        return tuple(_sorted(item) for item in key)
    if (type(key) is float and math.isnan(key)) or (
        type(key) is np.ndarray and key.dtype.kind in "fcmM" and np.isnan(key).any()
    ):
        raise ValueError("key: got one with nan in it; expected a key that equals itself")
    return key
