"""The checks of what a user hands to `AggressiveCache`: errors say argument, value, expectation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from capibench.cache.keys import CacheType
from capibench.cache.strategy_choice import CacheStrategy
from capibench.errors import ConfigError

MIB = 1 << 20


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


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Each tag once."""
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise ConfigError("tags", f"got {tags!r}; expected a sequence of texts")
    return tuple(dict.fromkeys(tags))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
