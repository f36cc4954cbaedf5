"""What an engine and a batching strategy ask of each other, said before anything is started."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.config import conf_dir
from capibench.errors import ImpossibleCombination
from capibench.stack import build_choices


def choices_of(*overrides):
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose("config", ["tracking=none", *overrides])
    node = OmegaConf.to_container(config, resolve=True)
    return build_choices({name: value for name, value in node.items() if name != "hydra"})


def test_joining_needs_an_engine_that_runs_iterations():
    message = r"batching: .*Continuous adds requests.*TransformersStatic .*transformers_continuous"
    with pytest.raises(ImpossibleCombination, match=message):
        choices_of("batching=continuous")
    assert choices_of("batching=continuous", "engine=transformers_continuous").engine.joins_running
    virtual = ["time=virtual", "engine=modeled_continuous", "embedder=modeled", "index=modeled"]
    assert choices_of("batching=continuous", *virtual).modeled


def test_a_batch_must_fit_into_the_engines_rows():
    with pytest.raises(
        ImpossibleCombination,
        match=r"engine\.max_rows: got 8; expected at least batching\.strategy\.max_batch_size=32",
    ):
        choices_of("engine=transformers_continuous", "engine.max_rows=8")
    choices_of("engine=transformers_continuous")  # greedy batches run to their end on it as well
