"""The strategies by the names that a user of `DynamicBatcher` picks from."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

from omegaconf import OmegaConf

from capibench.batching.batching import Batching
from capibench.batching.minimum import AtLeast
from capibench.config import build, conf_dir
from capibench.errors import ConfigError

# What strategies call the time for which the oldest request may be held back to form a batch.
_WAITS = ("full_wait_ms", "max_wait_ms", "window_ms")
_ARGUMENTS = dict.fromkeys(_WAITS, "max_wait_time_ms")
_COMPOSITION = "custom_config.composition"


class BatchStrategy(StrEnum):
    """When batches leave; the file of the same name in `conf/batching` says with what settings."""

    ADAPTIVE = "adaptive"
    FIXED_SIZE = "fixed_size"
    TIME_BASED = "time_based"
    PRIORITY_BASED = "priority_based"
    LOAD_BALANCED = "load_balanced"
    CONTINUOUS = "continuous"
    GREEDY = "greedy"

    @property
    def choice(self) -> str:
        """Its name in `conf/batching`."""
        return "priority" if self is BatchStrategy.PRIORITY_BASED else self.value


def build_batching(
    strategy: BatchStrategy,
    *,
    max_batch_size: int,
    min_batch_size: int,
    max_wait_ms: float,
    max_queue_size: int,
    custom_config: Mapping[str, Any],
) -> tuple[Batching, dict[str, Any]]:
    """The choice of `conf/batching`, with these values over its own.

    Args:
        max_wait_ms: for whatever the strategy waits for to form a batch; one that never waits
            does so for `min_batch_size` alone. With a `min_batch_size` above 1, the wait for a full
            batch (`full_wait_ms`) keeps its proportion to it in the file.
        custom_config: further values of the strategy, and of the composition under that key.

    Returns:
        the objects, and the settings that made them, as plain values.

    Raises:
        ConfigError: an unknown key, a wrong value.
        ValueError: `min_batch_size` is above the largest batch.
    """
    path = conf_dir() / "batching" / f"{strategy.choice}.yaml"
    node = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))
    values, composition = node["strategy"], node["composition"]
    values["max_batch_size"] = max_batch_size
    full_share = 1.0
    if "full_wait_ms" in values and min_batch_size > 1:
        full_share = values["full_wait_ms"] / values["max_wait_ms"]
    for name in _WAITS:
        if name in values:
            values[name] = float(max_wait_ms) * (full_share if name == "full_wait_ms" else 1.0)
    holds_back = "min_batch_size" in values
    if holds_back:
        values["min_batch_size"] = min_batch_size
    node["max_queue_size"] = max_queue_size
    changes = dict(custom_config)
    _replace(composition, changes.pop("composition", {}), _COMPOSITION)
    _replace(values, changes, "custom_config")
    try:
        batching = cast(Batching, build(node, "batching"))
    except ConfigError as error:
        raise as_argument(error, custom_config) from None
    if min_batch_size > 1 and not holds_back:
        batching.strategy = AtLeast(batching.strategy, min_batch_size, max_wait_ms)
    return batching, {**node, "min_batch_size": min_batch_size, "max_wait_time_ms": max_wait_ms}


def as_argument(error: ConfigError, custom_config: Mapping[str, Any]) -> ConfigError:
    """The same error with the key by which users of `DynamicBatcher` give the value."""
    key, problem = str(error).split(": ", maxsplit=1)
    key = key.replace("batching.composition", _COMPOSITION)
    name = key.removeprefix("batching.strategy.")
    if name != key:
        key = f"custom_config.{name}" if name in custom_config else _ARGUMENTS.get(name, name)
    return ConfigError(key, problem)


def _replace(values: dict[str, Any], changes: Any, key: str) -> None:
    if not isinstance(changes, Mapping):
        raise ConfigError(key, f"got {changes!r}; expected a mapping of settings")
    known = [name for name in values if name != "_target_"]
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}", f"got {value!r}; expected one of {', '.join(known)}")
        values[name] = value
