"""The formulas behind the metric table, and what each of them needs to be known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from capibench.measure import stats
from capibench.measure.measured import Measured
from capibench.measure.stats import Array, Estimate
from capibench.model.answers import exact_match, token_f1
from capibench.records import STAGES

Samples = Callable[[Measured], Array]

NEEDS: dict[str, Callable[[Measured], bool]] = {
    "rows": lambda m: len(m.frame) > 0,
    "window": lambda m: m.duration_s > 0 and len(m.frame) > 1,  # one request spans no time
    "trend": lambda m: len(m.frame) >= stats.TREND_REQUESTS,
    "successful": lambda m: len(m.ok) > 0,
    "tokens": lambda m: len(m.ttft_s) > 0,
    "several_tokens": lambda m: len(m.tpot_s) > 0,
    "batches": lambda m: len(m.batches) > 0,
    "not_modeled": lambda m: not m.modeled,
    "retrieved": lambda m: m.relevance is not None and len(retrieved_hits(m)) > 0,
    "answers": lambda m: m.relevance is not None and bool(answered(m)),
    **{
        f"lookups.{cache}": lambda m, cache=cache: len(m.lookups(cache)) > 0  # type: ignore[misc]
        for cache in ("result", "embedding", "output")
    },
    **{
        f"stage.{name}": lambda m, name=name: len(m.stage_s(name)) > 0  # type: ignore[misc]
        for name in STAGES
    },
}
"""Requirement → whether a run meets it. A name that is not listed here is the name of a fact."""


def unmet(measured: Measured, needs: tuple[str, ...]) -> list[str]:
    """The needs that this run does not meet."""
    missing = []
    for need in needs:
        met = NEEDS[need](measured) if need in NEEDS else measured.facts.get(need) is not None
        if not met:
            missing.append(need)
            break  # later needs may rest on earlier ones
    return missing


def e2e(measured: Measured) -> Array:
    return measured.e2e_s


def ttft(measured: Measured) -> Array:
    return measured.ttft_s


def tpot(measured: Measured) -> Array:
    return measured.tpot_s


def stage(measured: Measured, name: str) -> Array:
    return measured.stage_s(name)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    low, high = estimate.low, estimate.high
    return Estimate(
        estimate.value * factor,
        None if low is None else low * factor,
        None if high is None else high * factor,
        estimate.n,
    )


def percentile_ms(measured: Measured, samples: Samples, quantile: float) -> Estimate:
    return _scaled(stats.percentile(samples(measured), quantile), 1e3)


def mean_latency_ms(measured: Measured) -> Estimate:
    return _scaled(stats.mean(measured.e2e_s, measured.seed), 1e3)


def success_rate(measured: Measured) -> Estimate:
    return stats.share(measured.success)


def offered_rate(measured: Measured) -> Estimate:
    count = int(measured.in_window(measured.frame["intended_s"]).sum())
    return Estimate(count / measured.duration_s, n=count)


def achieved_rate(measured: Measured) -> Estimate:
    count = int(measured.in_window(measured.frame["sent_s"]).sum())
    return Estimate(count / measured.duration_s, n=count)


def successful_rate(measured: Measured) -> Estimate:
    return _scaled(success_rate(measured), offered_rate(measured).value)


def goodput(measured: Measured) -> Estimate:
    """By arrivals, not by completions: a late answer spoils the request that was scheduled."""
    return _scaled(stats.share(measured.good), offered_rate(measured).value)


def completed_rate(measured: Measured) -> Estimate:
    return _rate(measured, np.ones(len(measured.done_in_window)))


def token_rate(measured: Measured) -> Estimate:
    done = measured.done_in_window
    generated = np.asarray(done["served_by"] == "engine")
    tokens = np.asarray(done["output_tokens"].astype("float64"))
    return _rate(measured, np.where(generated, np.nan_to_num(tokens), 0.0))


def _rate(measured: Measured, weights: Array) -> Estimate:
    """Weight per second of the window; the interval from its slices, bootstrapped in blocks."""
    done = np.asarray(measured.done_in_window["done_s"], dtype=np.float64)
    num_slices = int(np.clip(len(done) // 5, 4, 40))
    edges = np.linspace(measured.window.begin_s, measured.window.end_s, num_slices + 1)
    per_slice, _ = np.histogram(done, bins=edges, weights=weights)
    rates = per_slice.astype(np.float64) / (measured.duration_s / num_slices)
    estimate = stats.mean(rates, measured.seed)
    low = None if estimate.low is None else max(0.0, estimate.low)
    return Estimate(float(weights.sum()) / measured.duration_s, low, estimate.high, len(done))


def lateness_ms(measured: Measured, quantile: float) -> Estimate:
    late = measured.sender_late_s
    return Estimate(float(np.quantile(late, quantile)) * 1e3, n=len(late))


def backlog_growth(measured: Measured) -> Estimate:
    trend = backlog(measured)
    assert trend is not None
    return Estimate(trend.growth_per_request, n=len(measured.frame))


def backlog(measured: Measured) -> stats.Backlog | None:
    """Trend of the unfinished requests over the measured arrivals; None: too few to tell."""
    frame = measured.frame
    return stats.backlog_trend(
        np.asarray(frame["intended_s"], dtype=np.float64),
        np.asarray(frame["done_s"], dtype=np.float64),
    )


def stage_sum_ok(measured: Measured) -> Estimate:
    allowed = np.maximum(0.02 * measured.e2e_s, 1e-4)
    return stats.share(np.abs(measured.stage_sum_s - measured.e2e_s) <= allowed)


def hit_rate(measured: Measured, cache: str, tiers: tuple[str, ...]) -> Estimate:
    return stats.share(np.isin(measured.lookups(cache), tiers))


def batch_size(measured: Measured) -> Estimate:
    sizes = np.asarray(measured.batches["batch_size"].astype("float64"))
    return stats.mean(sizes, measured.seed)


def batch_queue_ms(measured: Measured) -> Estimate:
    batched = measured.frame[measured.frame["batch_id"].notna()]
    waits = np.asarray(batched["generate_queue_s"], dtype=np.float64)
    return _scaled(stats.percentile(waits, 0.95), 1e3)


def retrieved_hits(measured: Measured) -> npt.NDArray[np.bool_]:
    """For every successful request that has passages and known relevance: was a right one there?"""
    assert measured.relevance is not None
    hits = []
    for question, retrieved in zip(
        measured.ok["question_id"], measured.ok["retrieved_ids"], strict=True
    ):
        relevant, _ = measured.relevance.get(question, ((), ()))
        if relevant and retrieved is not None and len(retrieved):
            hits.append(not set(relevant).isdisjoint(retrieved))
    return np.asarray(hits, dtype=np.bool_)


def hit_at_k(measured: Measured) -> Estimate:
    return stats.share(retrieved_hits(measured))


def answered(measured: Measured) -> list[tuple[str, tuple[str, ...]]]:
    """(answer, references) of every successful request whose references are known."""
    assert measured.relevance is not None
    pairs = []
    for question, answer in zip(measured.ok["question_id"], measured.ok["answer"], strict=True):
        _, references = measured.relevance.get(question, ((), ()))
        if references and isinstance(answer, str):
            pairs.append((answer, tuple(references)))
    return pairs


def answer_score(measured: Measured, score: str) -> Estimate:
    rate = {"token_f1": token_f1, "exact_match": exact_match}[score]
    memo = {pair: rate(*pair) for pair in set(answered(measured))}
    estimate = stats.mean(np.array([memo[pair] for pair in answered(measured)]), measured.seed)
    low, high = estimate.low, estimate.high
    return Estimate(
        estimate.value,
        None if low is None else max(0.0, low),
        None if high is None else min(1.0, high),
        estimate.n,
    )


def fact(measured: Measured, name: str) -> Estimate | None:
    """A value that the run recorded, with `NAME.low` and `NAME.high` where it recorded them."""
    value = measured.facts.get(name)
    if value is None:
        return None
    facts = measured.facts
    return Estimate(float(value), facts.get(f"{name}.low"), facts.get(f"{name}.high"))


def compression_ratio(measured: Measured) -> Estimate | None:
    before, after = measured.facts["model.baseline_bytes"], measured.facts["model.bytes"]
    return Estimate(before / after) if before and after else None
