"""From a strategy's name, with the user's own values over it, to a tuning ready to work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf

from capibench.config import build, conf_dir
from capibench.errors import ConfigError
from capibench.index.optimizer.names import IndexType, OptimizationStrategy
from capibench.index.tuning.budgeted import Budgeted

_GROUP = "index_tuning"
_TYPE = "index_type"  # short for a single candidate


def settings_of(
    strategy: OptimizationStrategy, changes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The values of a strategy with `changes` over them.

    Args:
        strategy: a choice of `conf/index_tuning`.
        changes: any of its values; parts of `halving` and `weights` may be given alone.
            `index_type` in place of `candidates` allows one type only.

    Raises:
        ConfigError: unknown strategy or key, or a wrong value.
    """
    name = OptimizationStrategy(strategy).value
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / _GROUP / f"{name}.yaml"))
    return changed(cast(dict[str, Any], loaded), changes)


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """`settings` with `changes` over them; as `settings_of`."""
    values = dict(settings)
    wanted = plain({} if changes is None else changes)
    if not isinstance(wanted, Mapping):
        raise ConfigError("custom_config", f"got {changes!r}; expected a mapping")
    if _TYPE in wanted and "candidates" in wanted:
        raise ConfigError(
            f"custom_config.{_TYPE}", f"got {wanted[_TYPE]!r} and candidates; expected one of both"
        )
    for key, value in wanted.items():
        if key == _TYPE:
            family = checked(IndexType, value, f"custom_config.{_TYPE}")
            values["candidates"] = {family.value: values["candidates"].get(family.value, {})}
            for unwanted in ("hard_families", "slow_families"):
                if unwanted in values:
                    values[unwanted] = []
            continue
        if key not in values or key == "_target_":
            known = ", ".join([_TYPE, *(k for k in values if k != "_target_")])
            raise ConfigError(f"custom_config.{key}", f"got {value!r}; expected one of {known}")
        partly = key in ("halving", "weights") and isinstance(value, Mapping)
        values[key] = {**values[key], **value} if partly else value
    tuning_of(values, "custom_config")
    return values


def tuning_of(settings: Mapping[str, Any], key: str = _GROUP) -> Budgeted:
    """Raises: ConfigError for a wrong value, beginning with `key`."""
    return cast(Budgeted, build(settings, key))


def plain(value: Any) -> Any:
    """A copy of plain values: NumPy's as Python's, which is what JSON can keep."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def checked(kind: Any, value: Any, key: str) -> Any:
    """`value` as a member of the enumeration `kind`; ConfigError where it is none."""
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise ConfigError(key, f"got {value!r}; expected one of {known}") from error
