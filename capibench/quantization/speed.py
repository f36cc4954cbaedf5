"""How fast models prefill and decode beside each other, and whether a difference is one.

A quantized model's speed-up depends on the phase and on the number of rows: a packed kernel that
wins in decoding loses in prefill. So both phases are timed apart, at every batch size, by the
engine's own loop (`capibench.engine.decoding.decode`): its clock is read when the tokens of a step
have reached the host, the first time after the prefill.

The machine's speed wanders, and by more than methods differ. So models are not timed one after the
other: every round runs each of them once per batch size, side by side and in an order drawn anew,
and a speed-up is the median over rounds of `baseline seconds / seconds` *of the same round*.

Intervals are bootstrap intervals of the median (Efron & Tibshirani 1993, §13) on logarithms, their
spread widened by Student's t for few rounds as in `capibench.measure.stats`; rounds count as
independent. In simulated A/A comparisons (normal, heavy-tailed and spiky noise, 3-20 rounds) at
most 5 % exclude 1; the plain percentile interval excludes it in 7-25 % for 3-8 rounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats as scipy_stats

from capibench.engine.decoding import decode, unsupported_layers
from capibench.measure.stats import CONFIDENCE, NUM_RESAMPLES, Estimate
from capibench.model.language_model import LanguageModel

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
MIN_ROUNDS_FOR_INTERVAL = 3
_WARMUP_STEPS = 2  # after a whole prefill: a decode step runs other kernels than a prefill


@dataclass(frozen=True, slots=True)
class Timing:
    """Raw seconds of one model in one shape; position r belongs to round r in every timing."""

    model: str
    batch_size: int
    prompt_tokens: int  # per row
    new_tokens: int  # decode steps after the prefill
    prefill_s: tuple[float, ...]  # [rounds]: until the first token of all rows (TTFT)
    step_s: tuple[tuple[float, ...], ...]  # [rounds][new_tokens]: every decode step

    @property
    def decode_s(self) -> tuple[float, ...]:
        """[rounds]: seconds of all decode steps together."""
        return tuple(math.fsum(steps) for steps in self.step_s)

    def seconds(self, phase: Phase) -> npt.NDArray[np.float64]:
        """[rounds]: the seconds of `phase`."""
        return np.asarray(self.prefill_s if phase == "prefill" else self.decode_s)


@dataclass(frozen=True, slots=True)
class Speedup:
    """Seconds of the baseline over seconds of this model: above 1 is faster than the baseline."""

    value: float  # median over rounds of the ratio within a round
    low: float | None  # None: too few rounds for an interval
    high: float | None
    tie: bool | None  # the interval contains 1; None: no interval


@dataclass(frozen=True, slots=True)
class Speed:
    """One phase of one model at one batch size, as it is reported."""

    model: str
    batch_size: int
    phase: Phase
    tokens_per_s: Estimate  # of the whole batch; n is the number of rounds
    latency_s: Estimate  # prefill: time to first token; decode: time per output token (one step)
    speedup: Speedup


@dataclass(frozen=True, slots=True)
class SpeedTable:
    """All timings of one interleaved study, and what they mean."""

    baseline: str
    seed: int
    num_threads: int  # torch's, during the measurement
    timings: tuple[Timing, ...]

    @property
    def rounds(self) -> int:
        return len(self.timings[0].prefill_s)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(timing.batch_size for timing in self.timings))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(timing.model for timing in self.timings))

    def timing(self, model: str, batch_size: int) -> Timing:
        """The raw seconds of one cell; KeyError when it was not measured."""
        for timing in self.timings:
            if (timing.model, timing.batch_size) == (model, batch_size):
                return timing
        raise KeyError((model, batch_size))

    def speed(self, model: str, batch_size: int, phase: Phase) -> Speed:
        """Tokens/s, latency and speed-up of one cell in one phase."""
        timing = self.timing(model, batch_size)
        value_s, low_s, high_s = _median(timing.seconds(phase), self.seed)
        steps = 1 if phase == "prefill" else timing.new_tokens
        tokens = batch_size * (timing.prompt_tokens if phase == "prefill" else steps)
        n = self.rounds
        return Speed(
            model=model,
            batch_size=batch_size,
            phase=phase,
            tokens_per_s=Estimate(
                tokens / value_s,
                None if high_s is None else tokens / high_s,
                None if low_s is None else tokens / low_s,
                n,
            ),
            latency_s=Estimate(
                value_s / steps,
                None if low_s is None else low_s / steps,
                None if high_s is None else high_s / steps,
                n,
            ),
            speedup=self.speedup(model, batch_size, phase, self.baseline),
        )

    def speedup(self, model: str, batch_size: int, phase: Phase, against: str) -> Speedup:
        """How many times faster `model` is than `against`, both in the same rounds."""
        ratios = self.timing(against, batch_size).seconds(phase) / self.timing(
            model, batch_size
        ).seconds(phase)
        value, low, high = _median(ratios, self.seed)
        tie = None if low is None or high is None else low <= 1.0 <= high
        return Speedup(value, low, high, tie)

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat mapping per model, batch size and phase, for `pandas.DataFrame`."""
        rows = []
        for timing, phase in itertools.product(self.timings, PHASES):
            speed = self.speed(timing.model, timing.batch_size, phase)
            rows.append(
                {
                    "model": speed.model,
                    "batch_size": speed.batch_size,
                    "phase": speed.phase,
                    "prompt_tokens": timing.prompt_tokens,
                    "new_tokens": timing.new_tokens,
                    "num_threads": self.num_threads,
                    "rounds": self.rounds,
                    **_flat("tokens_per_s", speed.tokens_per_s),
                    **_flat("ttft_s" if phase == "prefill" else "tpot_s", speed.latency_s),
                    "baseline": self.baseline,
                    **_flat("speedup", speed.speedup),
                    "tie": speed.speedup.tie,
                    "seconds_per_round": timing.seconds(phase).tolist(),
                }
            )
        return rows


def measure_speed(
    models: Mapping[str, LanguageModel],
    *,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    rounds: int,
    seed: int,
    baseline: str,
    progress: Callable[[str], None] | None = None,
) -> SpeedTable:
    """Prefill and decode of every model at every batch size, in interleaved rounds.

    All models see the same random token ids. Each is warmed up in each shape first. The number of
    threads is the caller's (`torch.set_num_threads`) and is recorded.

    Args:
        models: by name, all loaded; on CPU or GPU.
        batch_sizes: rows per batch.
        prompt_tokens: per row.
        new_tokens: decode steps after the prefill.
        rounds: how often each model runs per batch size; an interval needs at least 3.
        seed: of token ids, orders and the bootstrap.
        baseline: the name in `models` that speed-ups refer to.
        progress: told "model, batch size" after every warm-up and every timed run.

    Raises:
        ValueError: no model, an unknown baseline, a count below 1, a repeated batch size, or a
            model that has too few positions or whose cache this loop cannot fill.
    """
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: got {count}; expected at least 1")
    if not batch_sizes or min(batch_sizes) < 1 or len(set(batch_sizes)) < len(batch_sizes):
        raise ValueError(f"batch_sizes: got {list(batch_sizes)}; expected different ones from 1 up")
    if baseline not in models:
        raise ValueError(f"baseline: got {baseline!r}; expected one of {', '.join(models)}")
    for name, model in models.items():
        _check_fits(name, model, prompt_tokens + new_tokens)

    generator = np.random.default_rng(seed)
    vocabulary = min(int(model.module.config.vocab_size) for model in models.values())
    shape = (max(batch_sizes), prompt_tokens)
    prompts: list[list[int]] = generator.integers(0, vocabulary, size=shape).tolist()
    cells = list(itertools.product(batch_sizes, models))
    prefill_s: dict[tuple[int, str], list[float]] = {cell: [] for cell in cells}
    step_s: dict[tuple[int, str], list[tuple[float, ...]]] = {cell: [] for cell in cells}

    def done(batch_size: int, name: str) -> None:
        if progress is not None:
            progress(f"{name}, batch {batch_size}")

    for batch_size, name in cells:
        time_generation(models[name], prompts[:batch_size], min(_WARMUP_STEPS, new_tokens))
        done(batch_size, name)
    for _ in range(rounds):
        for batch_size in generator.permutation(batch_sizes).tolist():
            for name in generator.permutation(list(models)).tolist():
                first_s, steps_s = time_generation(models[name], prompts[:batch_size], new_tokens)
                prefill_s[batch_size, name].append(first_s)
                step_s[batch_size, name].append(steps_s)
                done(batch_size, name)

    timings = tuple(
        Timing(
            model=name,
            batch_size=batch_size,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            prefill_s=tuple(prefill_s[batch_size, name]),
            step_s=tuple(step_s[batch_size, name]),
        )
        for batch_size, name in cells
    )
    return SpeedTable(baseline, seed, torch.get_num_threads(), timings)


def _check_fits(name: str, model: LanguageModel, num_tokens: int) -> None:
    config = model.module.config
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and num_tokens > room:
        raise ValueError(
            f"prompt_tokens: with new_tokens {num_tokens} positions; expected at most {room}, "
            f"which {name} has"
        )
    unsupported = unsupported_layers(config)
    if unsupported:
        raise ValueError(
            f"models: {name} has layers of kind {', '.join(sorted(unsupported))}; expected a "
            "decoder with full or sliding-window attention"
        )


def time_generation(
    model: LanguageModel, prompts: Sequence[Sequence[int]], num_steps: int
) -> tuple[float, tuple[float, ...]]:
    """Seconds of the prefill, and of each of `num_steps` decode steps after it."""
    ticks_s: list[float] = []

    def now() -> float:  # `decode` reads it once per step
        ticks_s.append(perf_counter())
        return ticks_s[-1]

    if model.module.device.type == "cuda":
        torch.cuda.synchronize(model.module.device)  # nothing older counts
    began_s = perf_counter()
    decode(model.module, prompts, [num_steps + 1] * len(prompts), now)
    assert len(ticks_s) == num_steps + 1
    return ticks_s[0] - began_s, tuple(b - a for a, b in itertools.pairwise(ticks_s))


def _median(
    samples: npt.NDArray[np.float64], seed: int
) -> tuple[float, float | None, float | None]:
    """Median of positive `samples` (one per round) with its 95 % interval, symmetric on the log."""
    logs = np.log(samples)
    n = len(logs)
    middle = float(np.median(logs))
    if n < MIN_ROUNDS_FOR_INTERVAL:
        return math.exp(middle), None, None
    chosen = np.random.default_rng(seed).integers(0, n, size=(NUM_RESAMPLES, n))
    spread = float(np.median(logs[chosen], axis=1).std(ddof=1)) * math.sqrt(n / (n - 1))
    margin = float(scipy_stats.t.ppf(1.0 - (1.0 - CONFIDENCE) / 2.0, n - 1)) * spread
    return math.exp(middle), math.exp(middle - margin), math.exp(middle + margin)


def _flat(name: str, value: Estimate | Speedup) -> dict[str, float | None]:
    return {name: value.value, f"{name}.low": value.low, f"{name}.high": value.high}
