"""The study `caching` composes, and its stacks differ in nothing but the cache."""

from __future__ import annotations

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.config import conf_dir


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = OmegaConf.to_container(compose("config", overrides=list(overrides)))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_its_stacks_differ_in_the_cache_alone() -> None:
    study = OmegaConf.load(conf_dir() / "study" / "caching.yaml")
    names = study.hydra.sweeper.params.experiment.split(",")
    stacks = {name: composed("study=caching", f"experiment={name}") for name in names}
    caches = [stack.pop("cache") for stack in stacks.values()]
    assert [stack.pop("name") for stack in stacks.values()] == [n.split("/")[1] for n in names]
    first, *others = stacks.values()
    assert all(other == first for other in others)
    assert len({str(cache) for cache in caches}) == len(caches)
