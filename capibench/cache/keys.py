"""Which cached thing a key names: the type of the thing and everything that its value depends on.

A key must change whenever the value could: the pipeline passes texts, fingerprints of the model,
embedder, index and prompt, and every parameter that matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum

KEY_BYTES = 16


class CacheType(StrEnum):
    """What is cached; each type has its own time to live."""

    QUERY_RESULT = "query_result"  # the whole answer to a query
    EMBEDDING = "embedding"  # the vector of a text
    MODEL_OUTPUT = "model_output"  # what the model generated for a rendered prompt
    COMPUTATION = "computation"  # any other costly result
    METADATA = "metadata"  # what is known about something else


class KeyPrefix:
    """What many keys begin with, hashed once: starting BLAKE2b costs more than a short name."""

    __slots__ = ("_begin",)

    def __init__(self, kind: CacheType, *parts: str) -> None:
        self._begin = _hashed(kind, parts).copy

    def key(self, last: str) -> bytes:
        """`cache_key` of the prefix's type, its parts and `last`."""
        digest = self._begin()
        if type(last) is str and last.isascii():  # most are; `_framed` without its call
            digest.update(len(last).to_bytes(8, "little") + last.encode("ascii"))
        else:
            digest.update(_framed(last))
        return digest.digest()


def cache_key(kind: CacheType, *parts: str) -> bytes:
    """BLAKE2b-128 of the type and all parts; each is preceded by its length, so that no two
    different lists of parts are the same bytes (`("ab",)`, `("a", "b")` and `("", "ab")` differ).

    Raises:
        TypeError: a part is not a string (1 and "1" must not meet in one key).
    """
    return _hashed(kind, parts).digest()


def _hashed(kind: CacheType, parts: Sequence[str]) -> hashlib.blake2b:
    digest = _OF_TYPE[kind].copy()
    for part in parts:
        digest.update(_framed(part))
    return digest


def _framed(part: str) -> bytes:
    if not isinstance(part, str):
        raise TypeError(f"cache_key: got {part!r} ({type(part).__name__}); expected str parts")
    encoded = part.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded


_OF_TYPE = {
    kind: hashlib.blake2b(_framed(kind.value), digest_size=KEY_BYTES, person=b"capibench.cache")
    for kind in CacheType
}
