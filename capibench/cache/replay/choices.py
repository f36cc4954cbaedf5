"""Policies by name, as `conf/cache` has them, with values changed where the user says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capibench.cache.policy import EvictionPolicy
from capibench.config import build, conf_dir
from capibench.errors import ConfigError

BOUND = "belady"  # in every replay, and never a policy
_SIZE = re.compile(r"(\d+(?:\.\d+)?)(%|B|KiB|MiB|GiB)?")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def policy_names() -> tuple[str, ...]:
    """Every choice of the cache group that evicts online."""
    names = sorted(path.stem for path in (conf_dir() / "cache").glob("*.yaml"))
    return tuple(name for name in names if name not in ("none", BOUND))


def load_policies(
    specs: Sequence[str], config_dir: Path | None, plugins: Sequence[str]
) -> dict[str, EvictionPolicy]:
    """Prototypes of `NAME` or `NAME:field=value:field=value`, by that text.

    Raises:
        ConfigError: an unknown name, or a wrong value, with what would be right.
    """
    search = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.resolve()}]"]
    policies: dict[str, EvictionPolicy] = {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for spec in specs:
            name, *changes = spec.split(":")
            if name == BOUND:
                continue
            # With ++ an unknown one is added, so that `build` refuses it and lists the known ones.
            node = _node(name, [f"++cache.policy.{change}" for change in changes], search)
            policy = build(node, "cache.policy", plugins)
            if not isinstance(policy, EvictionPolicy):
                raise ConfigError("--policies", f"{name} builds {policy!r}, which is no policy")
            policies[spec] = policy
    return policies


def _node(name: str, changes: list[str], search: list[str]) -> Mapping[str, Any]:
    try:
        config = compose(overrides=[f"+cache={name}", *changes, *search])
    except MissingConfigException as error:
        known = ", ".join(policy_names())
        problem = f"got {name!r}; expected a choice of the cache group: {known}"
        raise ConfigError("--policies", problem) from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ConfigError("--policies", f"{name}: {cause}") from error
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    policy = node.get("cache", {}).get("policy")
    if policy is None:
        known = ", ".join(policy_names())
        raise ConfigError("--policies", f"got {name!r}, which keeps nothing; expected {known}")
    return policy  # type: ignore[no-any-return]


def capacities(sizes: str, working_set_bytes: int) -> list[int]:
    """Bytes of `1%,5%,64MiB`: shares are of the working set.

    Raises:
        ConfigError: what is no size, or nothing.
    """
    found = []
    for text in sizes.split(","):
        matched = _SIZE.fullmatch(text.strip())
        if matched is None:
            raise ConfigError("--sizes", f"got {text!r}; expected sizes such as 5% or 64MiB")
        number, unit = float(matched[1]), matched[2]
        num_bytes = (
            working_set_bytes * number / 100 if unit == "%" else number * _UNITS[unit or "B"]
        )
        if num_bytes == 0:
            raise ConfigError("--sizes", f"got {text.strip()}; expected more than nothing")
        found.append(max(int(num_bytes), 1))
    return sorted(set(found))
