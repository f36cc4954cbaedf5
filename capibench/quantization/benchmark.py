"""One quantized model against the original: same held-out tokens, interleaved rounds."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from capibench.errors import ConfigError
from capibench.measure.stats import Estimate
from capibench.model.language_model import LanguageModel
from capibench.quantization.cloze import answer_items, compare_cloze, make_items
from capibench.quantization.held_out import CLOZE_CONTEXT, CLOZE_CONTINUATION, CLOZE_ITEMS
from capibench.quantization.quality import Figure, compare, evaluate_pair, token_windows
from capibench.quantization.result import ACCURACY, SPEED, storable
from capibench.quantization.speed import Phase, SpeedTable, Speedup, measure_speed

ORIGINAL = "original"
QUANTIZED = "quantized"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured, and in which shapes."""

    eval_tokens: int  # scored at most
    eval_window: int  # tokens seen at once
    prompt_tokens: int  # per row
    new_tokens: int  # timed decode steps
    batch_sizes: tuple[int, ...]  # 1 is always among them
    seed: int

    def __post_init__(self) -> None:
        least = {"eval_tokens": 1, "eval_window": 2, "prompt_tokens": 1, "new_tokens": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(name, f"got {getattr(self, name)}; expected at least {bound}")
        if any(size < 1 for size in self.batch_sizes):
            raise ConfigError("batch_sizes", f"got {self.batch_sizes}; expected numbers from 1 up")

    def within(self, positions: int | None) -> Effort:
        """The same, cut to a model that has only so many positions."""
        sizes = tuple(sorted({1, *self.batch_sizes}))
        if positions is None:
            return Effort(**{**asdict(self), "batch_sizes": sizes})
        new_tokens = min(self.new_tokens, positions // 2)
        fitting = Effort(
            eval_tokens=self.eval_tokens,
            eval_window=min(self.eval_window, positions),
            prompt_tokens=min(self.prompt_tokens, positions - new_tokens),
            new_tokens=new_tokens,
            batch_sizes=sizes,
            seed=self.seed,
        )
        for name in ("eval_window", "prompt_tokens", "new_tokens"):
            if getattr(fitting, name) < getattr(self, name):
                _log.warning("%s: cut to %d, as the model has %d positions",
                             name, getattr(fitting, name), positions)  # fmt: skip
        return fitting


def positions_of(model: LanguageModel) -> int | None:
    """Tokens that the model can see at once; None where its configuration does not say."""
    positions = getattr(model.module.config, "max_position_embeddings", None)
    return None if positions is None else int(positions)


class Baseline:
    """The original in memory, to be measured beside however many quantized models follow.

    Raises:
        ConfigError: the texts have nothing to score.
    """

    def __init__(self, model: LanguageModel, texts: tuple[str, ...], effort: Effort) -> None:
        self._model = model
        self._texts = texts
        self._effort = effort.within(positions_of(model))
        try:
            token_windows(model, texts, self._effort.eval_tokens, self._effort.eval_window)
        except ValueError as error:
            raise ConfigError("test_data", str(error)) from error

    def measure(self, quantized: LanguageModel, rounds: int) -> dict[str, Any]:
        """Figures of quality and speed; each sampled one as value, low, high (95 %) and n.

        A figure that is not finite cannot be stored as JSON and becomes None.
        """
        speed = measure_speed(
            {ORIGINAL: self._model, QUANTIZED: quantized},
            batch_sizes=self._effort.batch_sizes,
            prompt_tokens=self._effort.prompt_tokens,
            new_tokens=self._effort.new_tokens,
            rounds=rounds,
            seed=self._effort.seed,
            baseline=ORIGINAL,
        )
        before, after = evaluate_pair(
            self._model,
            quantized,
            self._texts,
            self._effort.eval_tokens,
            self._effort.eval_window,
        )
        metrics = {
            **compare(before, after),
            **self._cloze(quantized),
            "baseline_perplexity": compare(before, before)["perplexity"],
            **_headlines(speed),
            "speed": speed.to_rows(),
            "conditions": {
                **asdict(self._effort),
                "rounds": rounds,
                "num_texts": len(self._texts),
                "num_threads": speed.num_threads,
            },
        }
        assert {ACCURACY, SPEED} <= metrics.keys()
        return storable(metrics)

    def _cloze(self, quantized: LanguageModel) -> dict[str, Figure]:
        """Accuracy in choosing a text's true continuation; absent where too few texts, or the
        model, are long enough for it."""
        items = make_items(
            self._model,
            self._texts,
            CLOZE_ITEMS,
            CLOZE_CONTEXT,
            CLOZE_CONTINUATION,
            self._effort.seed,
        )
        positions = positions_of(self._model)
        if not items or (positions is not None and positions < CLOZE_CONTEXT + CLOZE_CONTINUATION):
            return {}
        return compare_cloze(answer_items(self._model, items), answer_items(quantized, items))


def _headlines(speed: SpeedTable) -> dict[str, Any]:
    """Speed-ups, tokens/s, TTFT and TPOT at batch 1; every other shape is in the table."""

    def figures(phase: Phase, latency: str) -> dict[str, Any]:
        found = speed.speed(QUANTIZED, 1, phase)
        return {
            f"{phase}_speedup": _plain(found.speedup, speed.rounds),
            f"{phase}_tokens_per_s": _plain(found.tokens_per_s, speed.rounds),
            latency: _plain(found.latency_s, speed.rounds),
        }

    return {**figures("prefill", "ttft_s"), **figures("decode", "tpot_s")}


def _plain(value: Estimate | Speedup, n: int) -> dict[str, float | int | None]:
    return {"value": value.value, "low": value.low, "high": value.high, "n": n}
