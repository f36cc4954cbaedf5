"""The checks of what a user hands to `AggressiveCache`: errors say argument, value, expectation."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping

from capibench.cache.keys import CacheType
from capibench.cache.strategy_choice import CacheStrategy
from capibench.errors import ConfigError

MIB = 1 << 20
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 200


def checked_strategy(strategy: CacheStrategy) -> CacheStrategy:
    """The strategy, also by its name."""
    try:
        return CacheStrategy(strategy)
    except ValueError as error:
        known = ", ".join(CacheStrategy)
        raise ConfigError("strategy", f"got {strategy!r}; expected one of {known}") from error


def checked_type(kind: CacheType) -> CacheType:
    """The cache type, also by its name."""
    try:
        return CacheType(kind)
    except ValueError as error:
        known = ", ".join(CacheType)
        raise ConfigError("cache_type", f"got {kind!r}; expected one of {known}") from error


def by_type(name: str, values: Mapping[CacheType, float]) -> dict[CacheType, float]:
    """Values per cache type, which may be given by its name."""
    try:
        return {checked_type(kind): value for kind, value in values.items()}
    except ConfigError as error:
        raise ConfigError(name, error.problem) from error


def check_size(name: str, size_mb: float) -> None:
    """A tier holds something."""
    if not _is_number(size_mb) or not (math.isfinite(size_mb) and size_mb * MIB >= 1):
        raise ConfigError(name, f"got {size_mb!r}; expected a size of at least one byte")


def check_seconds(name: str, seconds: float) -> None:
    """A duration; infinity is one."""
    if not _is_number(seconds) or not seconds >= 0:
        raise ConfigError(name, f"got {seconds!r}; expected at least 0")


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Each tag once."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigError("tags", f"got {shown(tags)}; expected texts")
    each = list(tags)  # read once: it may be an iterator
    if not all(isinstance(tag, str) and tag for tag in each):
        raise ConfigError("tags", f"got {shown(each)}; expected texts")
    return tuple(dict.fromkeys(each))


def shown(value: object) -> str:
    """`value` in an error: its repr, however large it is and whatever that raises."""
    try:
        return _shorten.repr(value)
    except Exception:  # noqa: BLE001  an int of too many digits, a repr of the user's own
        return f"a {type(value).__name__}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
