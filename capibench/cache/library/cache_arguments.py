"""The checks of what a user hands to `AggressiveCache`: errors say argument, value, expectation."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from capibench.cache.keys import CacheType
from capibench.cache.library.strategy_choice import CacheStrategy
from capibench.errors import ConfigError

MIB = 1 << 20
_MOST_MIB = 1e9  # far over any disk, and far under where a count of bytes loses bytes
_MOST_S = 1e12  # 30,000 years; sums of it stay exact to the millisecond
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 200


def checked_strategy(strategy: CacheStrategy) -> CacheStrategy:
    """The strategy, also by its name."""
    try:
        return CacheStrategy(strategy)
    except (ValueError, TypeError) as error:
        known = ", ".join(CacheStrategy)
        raise ConfigError("strategy", f"got {shown(strategy)}; expected one of {known}") from error


def checked_type(kind: CacheType) -> CacheType:
    """The cache type, also by its name."""
    try:
        return CacheType(kind)
    except (ValueError, TypeError) as error:
        known = ", ".join(CacheType)
        raise ConfigError("cache_type", f"got {shown(kind)}; expected one of {known}") from error


def by_type(name: str, values: Mapping[CacheType, Any] | None) -> dict[CacheType, Any]:
    """Values per cache type, which may be given by its name."""
    try:
        return {checked_type(kind): value for kind, value in checked_mapping(name, values).items()}
    except ConfigError as error:
        raise ConfigError(name, error.problem) from error


def checked_mapping(name: str, values: Mapping[Any, Any] | None) -> Mapping[Any, Any]:
    """The values, or none."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(name, f"got {shown(values)}; expected a mapping, or None")
    return values


def checked_size(name: str, size_mb: float) -> int:
    """Of a tier that holds something, in bytes."""
    size = _number(size_mb)
    if not 1 <= size * MIB <= _MOST_MIB * MIB:
        problem = f"got {shown(size_mb)}; expected a size of at least one byte, in MiB to 1e9"
        raise ConfigError(name, problem)
    return int(size * MIB)


def checked_seconds(name: str, seconds: float) -> float:
    """A duration; infinity is one."""
    duration = _number(seconds)
    if not (0 <= duration <= _MOST_S or duration == math.inf):
        problem = f"got {shown(seconds)}; expected at least 0, to 1e12, or infinity"
        raise ConfigError(name, problem)
    return duration


def checked_cost(name: str, seconds: float) -> float:
    """Seconds that were spent, which add up."""
    cost_s = _number(seconds)
    if not 0 <= cost_s <= _MOST_S:
        raise ConfigError(name, f"got {shown(seconds)}; expected 0 to 1e12")
    return cost_s


def checked_shares(name: str, quotas: Mapping[CacheType, float] | None) -> dict[CacheType, float]:
    """Shares of a tier that fit into it."""
    shares = {}
    for kind, share in by_type(name, quotas).items():
        shares[kind] = _number(share)
        if not 0 < shares[kind] <= 1:
            raise ConfigError(f"{name}.{kind}", f"got {shown(share)}; expected above 0, to 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise ConfigError(name, f"got {sum(shares.values())} in all; expected at most 1")
    return shares


def checked_jitter(name: str, share: float) -> float:
    """A share of a life that leaves some of it."""
    jitter = _number(share)
    if not 0 <= jitter < 1:
        raise ConfigError(name, f"got {shown(share)}; expected 0 to below 1")
    return jitter


def checked_seed(name: str, seed: object) -> int:
    """What a generator can start from."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0:
        raise ConfigError(name, f"got {shown(seed)}; expected an int of at least 0")
    return int(seed)


def checked_switch(name: str, switch: bool) -> bool:
    """On or off, and nothing that only looks like it."""
    if type(switch) is not bool:
        raise ConfigError(name, f"got {shown(switch)}; expected True or False")
    return switch


def checked_epoch(epoch: str) -> str:
    """A name."""
    if not isinstance(epoch, str):
        raise ConfigError("epoch", f"got {shown(epoch)}; expected a str")
    return str(epoch)


def checked_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """What tells seconds."""
    if not callable(clock):
        raise ConfigError("clock", f"got {shown(clock)}; expected a function without arguments")
    if not math.isfinite(_number(told := clock())):
        raise ConfigError("clock", f"got one that says {shown(told)}; expected seconds")
    return clock


def checked_folder(name: str, folder: str | PathLike[str]) -> Path:
    """Where a folder is or may be made."""
    if not isinstance(folder, str | PathLike) or not isinstance(fspath(folder), str) or not folder:
        raise ConfigError(name, f"got {shown(folder)}; expected the path of a folder")
    try:
        path = Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # nobody's home, links in a ring, a null
        problem = f"got {shown(folder)}; expected the path of a folder ({error})"
        raise ConfigError(name, problem) from error
    # Not of `Path`, which raise where a folder above may not be entered: that costs the tier only.
    if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112
        raise ConfigError(name, f"got {shown(folder)}, which is a file; expected a folder")
    return path


def check_compute(compute: object) -> None:
    """A function."""
    if not callable(compute):
        raise ConfigError("compute", f"got {shown(compute)}; expected a function without arguments")


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


def _number(value: object) -> float:
    """As a float, numpy's included; nan, which no range includes, for what is no number."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
