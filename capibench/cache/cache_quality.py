"""What a cache that serves more than exact copies costs in quality, measured in the run itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from capibench.cache.similar.semantic import SemanticCache, Vector
from capibench.cache.similar.semantic_calibration import calibrate, interval
from capibench.errors import ConfigError

if TYPE_CHECKING:
    from capibench.loading import Loaded

_RECALL_QUESTIONS = 256


def open_semantic(
    choices: Any, corpus: Any, plan: Any, loaded: Loaded, rng: np.random.Generator
) -> SemanticCache | None:
    """The semantic cache with its threshold calibrated on questions that the load does not ask;
    None where none is chosen.

    Raises:
        ConfigError: the corpus has too few other questions.
    """
    settings = choices.cache.similar
    if settings is None:
        return None
    asked = {request.question_id for request in plan.requests}
    others = [question for question in corpus.questions if question.id not in asked]
    begin_s = perf_counter()
    try:
        found = calibrate(settings, others, choices.embedder.encode, rng)
    except ValueError as error:
        raise ConfigError("", f"cache.semantic.{error}") from error
    loaded.facts["setup.semantic_calibration_s"] = perf_counter() - begin_s
    name = "cache.semantic.calibrated_false_hit_rate"
    loaded.facts[name] = found.false_hit_rate
    loaded.facts[f"{name}.low"] = found.false_hit_low
    loaded.facts[f"{name}.high"] = found.false_hit_high
    loaded.components["semantic_calibration"] = found.as_dict()
    return SemanticCache(settings, found.threshold, rng)


def semantic_facts(semantic: SemanticCache, confidence: float) -> dict[str, float | None]:
    """The audited false-hit rate with its Clopper-Pearson interval; None where none was audited."""
    stats = semantic.stats()
    name = "cache.semantic.false_hit_rate"
    if stats["audited"] == 0:
        return {name: None}
    low, high = interval(stats["wrong"], stats["audited"], confidence)
    return {name: stats["wrong"] / stats["audited"], f"{name}.low": low, f"{name}.high": high}


def float16_recall(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Vector],
    search: Callable[[Vector], Any],
) -> float | None:
    """Share of the passages found by exact vectors that the rounded ones find as well.

    Args:
        search: [n, dimension] vectors to [n, k] ids, -1 where there are fewer than k.
    """
    if not texts:
        return None
    vectors = encode(texts[:_RECALL_QUESTIONS])
    exact = search(vectors)
    rounded = search(vectors.astype(np.float16).astype(np.float32))
    same = sum(
        len(set(a[a >= 0].tolist()) & set(b[b >= 0].tolist()))
        for a, b in zip(exact, rounded, strict=True)
    )
    return same / max(1, int((exact >= 0).sum()))
