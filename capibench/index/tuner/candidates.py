"""From an arm's name to a node that builds it: the choices of `conf/index`, without Hydra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, cast

from omegaconf import OmegaConf

from capibench.config import build, conf_dir
from capibench.errors import ConfigError
from capibench.index.metric import Metric
from capibench.index.stored_index import StoredIndex
from capibench.index.tuning.points import Arm
from capibench.index.vector_store import VectorType

_GROUP = "index"
_KEY = "index_tuning.candidates"


@dataclass(frozen=True, slots=True)
class Serving:
    """What the caller has decided and no candidate may change."""

    max_batch_size: int  # queries searched at once
    metric: Metric
    vectors_dtype: VectorType
    max_deleted_share: float

    @classmethod
    def of(cls, index: StoredIndex) -> Serving:
        """As a configured index has it."""
        return cls(index.max_batch_size, index.metric, index.vectors_dtype, index.max_deleted_share)


@cache
def family_names() -> tuple[str, ...]:
    """All choices that store vectors."""
    names = sorted(path.stem for path in (conf_dir() / _GROUP).glob("*.yaml"))
    return tuple(name for name in names if "metric" in _values(name))


def node_of_arm(arm: Arm, serving: Serving, key: str = _KEY) -> dict[str, Any]:
    """The configuration of an arm; errors begin with `key`.

    Raises:
        ConfigError: there is no such family, or it has no such parameter.
    """
    if arm.family not in family_names():
        raise ConfigError(
            f"{key}.{arm.family}",
            f"unknown; expected one of {', '.join(family_names())}",
        )
    values = _values(arm.family)
    fixed = {**asdict(serving), "metric": serving.metric.value}
    known = [name for name in values if name != "_target_" and name not in fixed]
    for name, value in arm.changes:
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "none, since it has no parameters"
            raise ConfigError(f"{key}.{arm.family}.{name}", f"got {value!r}; expected {expected}")
    return {**values, **dict(arm.changes), **fixed}


def built(node: Mapping[str, Any], key: str = _GROUP) -> StoredIndex:
    """The index of a node, not yet holding anything; errors begin with `key`.

    Raises:
        ConfigError: a value is wrong; MissingExtra: its library is not installed.
    """
    return cast(StoredIndex, build(node, key))


def check_arms(arms: Iterable[Arm], serving: Serving, key: str = _KEY) -> None:
    """Raise what `node_of_arm` and `built` would raise of any of them, before work begins."""
    for arm in arms:
        built(node_of_arm(arm, serving, key), f"{key}.{arm.family}")


@cache
def _values(name: str) -> Mapping[str, Any]:
    loaded = OmegaConf.load(conf_dir() / _GROUP / f"{name}.yaml")
    return cast(dict[str, Any], OmegaConf.to_container(loaded, resolve=True))
