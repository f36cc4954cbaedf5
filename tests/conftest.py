"""What every test may use: a choice of the configuration tree, built as a run builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from capibench.config import build, conf_dir


def load_choice(group: str, name: str, **changes: object) -> dict[str, Any]:
    """The plain values of `conf/<group>/<name>.yaml`, with some replaced (no defaults list)."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {**node, **changes}


@pytest.fixture
def choice() -> Callable[..., Any]:
    """`choice("batching", "greedy", max_batch_size=4)` builds that choice."""

    def make(group: str, name: str, **changes: object) -> Any:
        return build(load_choice(group, name, **changes), group)

    return make


def choices(group: str) -> list[str]:
    """Names of all choices of a group, for parametrised contract tests."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
