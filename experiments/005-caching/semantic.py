"""Which similarity keeps the false hits of the semantic cache within a budget, on the embedded
corpus' questions and their made paraphrases?

    python experiments/005-caching/semantic.py

A minute on one core. `threshold` null: none does, and `cache/semantic=cosine` then serves nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.cache.similar.semantic_calibration import calibrate
from capibench.config import conf_dir
from capibench.stack import build_choices

BUDGETS = (0.01, 0.05, 0.1, 0.2)


def main() -> None:
    """One JSON line per budget."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose("config", overrides=["cache/semantic=cosine"])
    choices = build_choices(OmegaConf.to_container(config))  # type: ignore[arg-type]
    choices.embedder.open()
    questions = choices.corpus.load().questions
    for budget in BUDGETS:
        settings = dataclasses.replace(choices.cache.similar, false_hit_budget=budget)
        found = calibrate(settings, questions, choices.embedder.encode, np.random.default_rng(0))
        line = {"budget": budget, "questions": settings.num_calibration_questions}
        sys.stdout.write(json.dumps({**line, **found.as_dict()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
