"""The configuration tree as tests see it: names of choices, and their plain values."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from capibench.config import conf_dir


def choices(group: str) -> list[str]:
    """Names of all choices of a group, for parametrised contract tests."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def load_choice(group: str, name: str, **changes: object) -> dict[str, Any]:
    """The plain values of `conf/<group>/<name>.yaml`, with some replaced (no defaults list)."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {**node, **changes}
