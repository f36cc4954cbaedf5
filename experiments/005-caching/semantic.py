"""Which similarity keeps the false hits of the semantic cache within a budget, on the embedded
corpus' questions and their made paraphrases?

    python experiments/005-caching/semantic.py

Some minutes on one core. `threshold` null: none does, and `cache/semantic=cosine` then serves
nothing. Each seed draws other questions, which decides about it at the tighter budgets.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.cache.similar.semantic_calibration import calibrate
from capibench.config import conf_dir
from capibench.stack import build_choices

BUDGETS = (0.01, 0.05, 0.1, 0.2)
SEEDS = range(8)


def main() -> None:
    """One JSON line per budget and seed."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose("config", overrides=["cache/semantic=cosine"])
    choices = build_choices(OmegaConf.to_container(config))  # type: ignore[arg-type]
    choices.embedder.open()
    questions = choices.corpus.load().questions
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, choices.embedder.encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    for budget, seed in itertools.product(BUDGETS, SEEDS):
        settings = dataclasses.replace(choices.cache.similar, false_hit_budget=budget)
        found = calibrate(settings, questions, encode, np.random.default_rng(seed))
        line = {"budget": budget, "seed": seed, "questions": settings.num_calibration_questions}
        sys.stdout.write(json.dumps({**line, **found.as_dict()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
