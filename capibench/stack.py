"""From a resolved configuration to the objects of one run, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capibench.config import build, build_root
from capibench.errors import ConfigError, ImpossibleCombination
from capibench.index.index import TextIndex

# In the order in which they are built: what imports quickly first, so that a wrong value in a
# light group is reported before a heavy library is imported.
GROUPS = (
    "time",
    "tracking",
    "slo",
    "load",
    "prompt",
    "batching",
    "cache",
    "corpus",
    "index_tuning",
    "index",
    "embedder",
    "quantization",
    "model",
    "engine",
)


@dataclass(frozen=True)
class Choices:
    """One built object per group; none of them has loaded or started anything."""

    time: Any
    tracking: Any
    slo: Any
    load: Any
    prompt: Any
    batching: Any
    cache: Any
    corpus: Any
    index_tuning: Any
    index: Any
    embedder: Any
    quantization: Any
    model: Any
    engine: Any

    @property
    def modeled(self) -> bool:
        """Whether any part states its time instead of working: never ranked with measured runs."""
        return any(part.modeled for part in (self.engine, self.embedder, self.index))


def build_choices(config: Mapping[str, Any]) -> Choices:
    """Build every group of `config` and check what they are together.

    Raises:
        ConfigError: one value is wrong.
        ImpossibleCombination: every value is right, but together they cannot run.
    """
    root = build_root(config, GROUPS)
    for group in GROUPS:
        if config.get(group) is None:
            raise ConfigError(group, f"nothing chosen; expected {group}=CHOICE (see run --help)")
    choices = Choices(**{group: build(config[group], group, root.plugins) for group in GROUPS})
    check(choices, config)
    return choices


def check(choices: Choices, config: Mapping[str, Any]) -> None:
    """The rules across groups, each as the sentence that a user reads when it is broken."""
    if config["time"]["_target_"].endswith(".VirtualTime"):
        for group in ("engine", "embedder", "index"):
            if not getattr(choices, group).modeled:
                raise ImpossibleCombination(
                    group,
                    f"{config[group]['_target_']} computes for real, which cannot be mixed with "
                    f"time=virtual; expected {group}=modeled (or time=real)",
                )
    strategy = choices.batching.strategy
    if strategy.joins_running and not choices.engine.joins_running:
        raise ImpossibleCombination(
            "batching",
            f"{config['batching']['strategy']['_target_']} adds requests to a batch that runs, and "
            f"{config['engine']['_target_']} runs a batch to its end; expected "
            "engine=transformers_continuous (time=virtual: modeled_continuous)",
        )
    max_rows = getattr(choices.engine, "max_rows", None)  # None: bounds nothing
    if max_rows is not None and strategy.max_batch_size > max_rows:
        raise ImpossibleCombination(
            "engine.max_rows",
            f"got {max_rows}; expected at least batching.strategy.max_batch_size="
            f"{strategy.max_batch_size}",
        )
    if not choices.engine.needs_model and choices.quantization.params()["method"] != "none":
        raise ImpossibleCombination(
            "quantization",
            f"{choices.quantization.params()['method']} would change nothing, because "
            f"{config['engine']['_target_']} runs no model; expected quantization=none",
        )
    if choices.quantization.params()["method"] == "mixed" and not choices.model.meaningful:
        raise ImpossibleCombination(
            "quantization",
            "mixed measures what each layer's rounding does to the answers, which means nothing "
            f"for the random weights of {config['model']['_target_']}; expected model=nano or hf",
        )
    if choices.index_tuning.changes_effort and (
        choices.index.modeled or not choices.index.effort_ladder()
    ):
        raise ImpossibleCombination(
            "index_tuning",
            f"{config['index']['_target_']} has no query effort to tune; expected "
            "index_tuning=none, or an approximate index such as index=ivf",
        )
    if choices.cache.similar is not None and choices.modeled:
        raise ImpossibleCombination(
            "cache.semantic",
            "similar questions and same answers mean nothing where embedder, index or engine are "
            "modeled; expected cache/semantic=none (or real ones)",
        )
    if choices.index_tuning.replaces_index and (
        choices.index.modeled or isinstance(choices.index, TextIndex)
    ):
        raise ImpossibleCombination(
            "index_tuning",
            f"{config['index_tuning']['_target_']} chooses an index by its vectors alone, in place "
            f"of {config['index']['_target_']}; expected index=flat, or another of vectors",
        )
    tunes = choices.index_tuning.changes_effort or choices.index_tuning.replaces_index
    if tunes and choices.embedder.modeled:
        raise ImpossibleCombination(
            "index_tuning",
            "recall over modeled vectors means nothing; expected a real embedder",
        )
