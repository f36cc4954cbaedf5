"""The one typed table of metrics; MLflow names, report headings and directions come from it.

Formulas look at the raw measured rows (percentiles are never averaged) or read a fact that a run
recorded while setting up. A value that cannot be known is None with the reason, never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from capibench.measure import formulas
from capibench.measure.measured import Measured
from capibench.measure.stats import Estimate
from capibench.records import STAGES

Formula = Callable[[Measured], Estimate | None]
Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured, in which unit, which direction is better, and from what."""

    name: str
    unit: str
    better: Better
    meaning: str
    formula: Formula
    needs: tuple[str, ...]  # names of `formulas.NEEDS`; without one of them the value is None
    headline: bool = False


def _latency(
    prefix: str, what: str, samples: formulas.Samples, needs: tuple[str, ...], headline: bool
) -> list[Metric]:
    quantiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    if prefix == "latency.e2e":
        quantiles["p99_9"] = 0.999
    return [
        Metric(
            f"{prefix}.{label}_ms",
            "ms",
            "lower",
            f"{what}: {quantile:.1%} of the successful requests took at most this long.".replace(
                ".0%", "%"
            ),
            partial(formulas.percentile_ms, samples=samples, quantile=quantile),
            needs,
            headline and label in ("p50", "p95", "p99"),
        )
        for label, quantile in quantiles.items()
    ]


def _cache(cache: str, what: str) -> list[Metric]:
    need = (f"lookups.{cache}",)
    return [
        Metric(
            f"cache.{cache}.hit_rate",
            "share",
            "neither",  # a hit describes; what it is worth, latency and goodput tell
            f"Share of the look-ups of {what} that found it, of those that consulted the cache.",
            partial(formulas.hit_rate, cache=cache, tiers=("l1", "l2")),
            need,
            cache == "result",
        ),
        *(
            Metric(
                f"cache.{cache}.{tier}_hit_rate",
                "share",
                "neither",
                f"Share of those look-ups that found {what} in the {where}.",
                partial(formulas.hit_rate, cache=cache, tiers=(tier,)),
                need,
            )
            for tier, where in (("l1", "first tier (memory)"), ("l2", "second tier (disk)"))
        ),
    ]


def _fact(
    name: str,
    unit: str,
    better: Better,
    meaning: str,
    *,
    headline: bool = False,
    needs: tuple[str, ...] = (),
) -> Metric:
    return Metric(
        name, unit, better, meaning, partial(formulas.fact, name=name), (*needs, name), headline
    )


def _setup(part: str, meaning: str) -> Metric:
    return _fact(f"setup.{part}_s", "s", "lower", meaning)


METRICS: tuple[Metric, ...] = (
    Metric(
        "success_rate",
        "share",
        "higher",
        "Share of the measured requests that were answered; the others failed, were refused or "
        "timed out.",
        formulas.success_rate,
        ("rows",),
        headline=True,
    ),
    Metric(
        "goodput_per_s",
        "1/s",
        "higher",
        "Offered rate times the share of requests answered within their objectives (latency by "
        "priority, first token, deadline).",
        formulas.goodput,
        ("rows", "window"),
        headline=True,
    ),
    *_latency(
        "latency.e2e",
        "From the scheduled arrival to the whole answer",
        formulas.e2e,
        ("successful",),
        headline=True,
    ),
    Metric(
        "latency.e2e.mean_ms",
        "ms",
        "lower",
        "Mean time from the scheduled arrival to the whole answer, successful requests.",
        formulas.mean_latency_ms,
        ("successful",),
    ),
    *_latency(
        "ttft",
        "From the scheduled arrival to the first generated token",
        formulas.ttft,
        ("tokens",),
        headline=False,
    ),
    *_latency(
        "tpot",
        "Time per generated token after the first",
        formulas.tpot,
        ("several_tokens",),
        headline=False,
    ),
    *(
        metric
        for stage in STAGES
        for metric in _latency(
            f"latency.stage.{stage}",
            f"Time in the stage {stage}, of the requests that entered it",
            partial(formulas.stage, name=stage),
            ("successful", f"stage.{stage}"),
            headline=False,
        )
    ),
    Metric(
        "stages.sum_ok_share",
        "share",
        "higher",
        "Share of the successful requests whose stage times add up to the end-to-end time within "
        "2 % or 0.1 ms.",
        formulas.stage_sum_ok,
        ("successful",),
    ),
    Metric(
        "throughput.requests_per_s",
        "1/s",
        "higher",
        "Requests completed inside the window, per second, those of the warm-up that ended in it "
        "included; the drain after it does not count.",
        formulas.completed_rate,
        ("rows", "window"),
        headline=True,
    ),
    Metric(
        "throughput.output_tokens_per_s",
        "tokens/s",
        "higher",
        "Tokens generated for requests that completed inside the window, per second; answers from "
        "a cache generate none.",
        formulas.token_rate,
        ("rows", "window"),
    ),
    Metric(
        "rate.offered_per_s",
        "1/s",
        "neither",
        "Requests that were scheduled inside the window, per second.",
        formulas.offered_rate,
        ("rows", "window"),
    ),
    Metric(
        "rate.achieved_per_s",
        "1/s",
        "neither",
        "Requests that were sent inside the window, per second.",
        formulas.achieved_rate,
        ("rows", "window"),
    ),
    Metric(
        "rate.successful_per_s",
        "1/s",
        "higher",
        "Offered rate times the share of requests that were answered, however late.",
        formulas.successful_rate,
        ("rows", "window"),
    ),
    *(
        Metric(
            f"sender.lateness_{label}_ms",
            "ms",
            "lower",
            f"How late requests left the load generator against their schedule ({label}).",
            partial(formulas.lateness_ms, quantile=quantile),
            ("rows",),
        )
        for label, quantile in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    ),
    Metric(
        "backlog.growth_per_request",
        "requests",
        "lower",
        "Slope of the number of unfinished requests against the arrivals: the share of the load "
        "that the stack cannot keep up with.",
        formulas.backlog_growth,
        ("rows", "trend"),
    ),
    *_cache("result", "a whole answer"),
    *(
        Metric(
            f"cache.result.{outcome}_rate",
            "share",
            "neither",
            f"Share of the look-ups of a whole answer that {what}.",
            partial(formulas.hit_rate, cache="result", tiers=(outcome,)),
            ("lookups.result",),
        )
        for outcome, what in (
            ("semantic", "were served the answer to a similar question (it can be wrong)"),
            ("joined", "waited for a request that computed the same already"),
        )
    ),
    _fact(
        "cache.result.belady_hit_rate",
        "share",
        "neither",
        "What a cache that knows the future would have hit with as many whole answers as fit into "
        "the tiers at their mean size: the ceiling beside the hit rate.",
    ),
    _fact(
        "cache.result.infinite_hit_rate",
        "share",
        "neither",
        "Share of those look-ups whose question had been asked before: what a cache that never "
        "forgets would have hit.",
    ),
    _fact(
        "cache.saved_s",
        "s",
        "neither",
        "Seconds that computing what the cache served, of all types, took when it was computed; "
        "warm-up included.",
    ),
    _fact(
        "cache.prefetch.precision",
        "share",
        "neither",
        "Of the entries that were brought from disk into memory before they were asked for, and "
        "then used or displaced, those that were used.",
    ),
    _fact(
        "cache.prefetch.prefetched",
        "entries",
        "neither",
        "Entries that were brought from disk into memory before they were asked for; warm-up "
        "included, as in all figures of prefetching.",
    ),
    _fact(
        "cache.prefetch.used",
        "entries",
        "neither",
        "Those of them that were asked for while they were in memory.",
    ),
    _fact(
        "cache.prefetch.harmed",
        "lookups",
        "neither",
        "Look-ups that memory would have answered had nothing been prefetched: exact for LRU and "
        "entries of one size, else an estimate.",
    ),
    _fact(
        "cache.prefetch.saved_s",
        "s",
        "neither",
        "Seconds that reading the used entries from disk took while nobody waited, less those of "
        "finding them in memory.",
    ),
    _fact(
        "cache.prefetch.tending_s",
        "s",
        "neither",
        "Seconds that prefetching took beside the requests: learning, choosing and reading.",
    ),
    _fact(
        "cache.semantic.false_hit_rate",
        "share",
        "lower",
        "Share of the semantic hits that were wrong: of a random sample that was computed all the "
        "same, those whose answer differs.",
        headline=True,
        needs=("not_modeled",),
    ),
    _fact(
        "cache.semantic.calibrated_false_hit_rate",
        "share",
        "lower",
        "The same on made paraphrases and unknown questions that had no part in choosing the "
        "threshold.",
        needs=("not_modeled",),
    ),
    _fact(
        "cache.embedding.float16_recall_at_k",
        "share",
        "higher",
        "Share of the k passages that are found by a question's exact vector which its vector "
        "rounded to float16, as it is cached, finds as well.",
        needs=("not_modeled",),
    ),
    *_cache("embedding", "a question's vector"),
    *_cache("output", "the output for a rendered prompt"),
    Metric(
        "batch.mean_size",
        "requests",
        "neither",
        "Mean number of requests in a generation batch; it describes and does not rank.",
        formulas.batch_size,
        ("batches",),
    ),
    Metric(
        "batch.queue_p95_ms",
        "ms",
        "lower",
        "95 % of the generated requests waited at most this long for their batch.",
        formulas.batch_queue_ms,
        ("batches",),
    ),
    _fact(
        "quality.recall_at_k",
        "share",
        "higher",
        "Share of the exact k nearest passages that the index returns, on held-out questions.",
        headline=True,
        needs=("not_modeled",),
    ),
    Metric(
        "quality.hit_at_k",
        "share",
        "higher",
        "Share of the answered requests that were given a right passage.",
        formulas.hit_at_k,
        ("not_modeled", "retrieved"),
    ),
    _fact(
        "quality.bm25_hit_at_k",
        "share",
        "neither",
        "How often plain BM25 finds a right passage: says how hard the questions are.",
    ),
    Metric(
        "quality.answer_f1",
        "share",
        "higher",
        "Token F1 of the answers against the reference answers, mean over answered requests.",
        partial(formulas.answer_score, score="token_f1"),
        ("not_modeled", "answers"),
        headline=True,
    ),
    Metric(
        "quality.answer_em",
        "share",
        "higher",
        "Share of the answers that equal a reference answer after normalisation.",
        partial(formulas.answer_score, score="exact_match"),
        ("not_modeled", "answers"),
    ),
    _fact(
        "quality.perplexity",
        "1",
        "lower",
        "Perplexity of the served model on held-out text.",
        headline=True,
        needs=("not_modeled",),
    ),
    _fact(
        "quality.perplexity_ratio",
        "ratio",
        "lower",
        "Perplexity of the served model over that of the unquantized one, same tokens.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.top1_agreement",
        "share",
        "higher",
        "Share of held-out tokens for which served and unquantized model predict the same token.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.kl_mean",
        "nats",
        "lower",
        "Mean Kullback-Leibler divergence of the served model's next-token distributions from the "
        "unquantized one's, held-out tokens.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.kl_p99",
        "nats",
        "lower",
        "99 % of the held-out tokens have at most this divergence: what the worst ones suffer.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.few_rows.perplexity_ratio",
        "ratio",
        "lower",
        "The same ratio where a quantized model's layers see few rows at once, as they do in "
        "decoding: some use another kernel there.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.few_rows.kl_mean",
        "nats",
        "lower",
        "The same divergence where a quantized model's layers see few rows at once.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.cloze_accuracy",
        "share",
        "higher",
        "Share of held-out passages whose true continuation the served model finds likelier than "
        "three from other passages (guessing: 0.25).",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.cloze_loss",
        "share",
        "lower",
        "Cloze accuracy of the unquantized model minus that of the served one, same items.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.kv_cache.perplexity_ratio",
        "ratio",
        "lower",
        "Perplexity of the served model decoding over its int8 key-value cache over that with an "
        "exact cache, same held-out tokens.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.kv_cache.kl_mean",
        "nats",
        "lower",
        "Mean Kullback-Leibler divergence of the next-token distributions over the int8 cache "
        "from those over an exact one.",
        needs=("not_modeled",),
    ),
    _fact(
        "quality.kv_cache.top1_agreement",
        "share",
        "higher",
        "Share of held-out tokens for which the model predicts the same token over either cache.",
        needs=("not_modeled",),
    ),
    _fact(
        "model.bytes",
        "bytes",
        "lower",
        "Bytes of the served model's weights in memory, scales and zero points included.",
    ),
    Metric(
        "model.compression_ratio",
        "ratio",
        "higher",
        "Bytes of the unquantized weights over bytes of the served ones.",
        formulas.compression_ratio,
        ("model.bytes", "model.baseline_bytes"),
        headline=True,
    ),
    _fact("model.disk_bytes", "bytes", "lower", "Bytes of the quantized weights on disk."),
    _fact(
        "engine.kv_bytes_per_token",
        "bytes",
        "lower",
        "Bytes that the engine's cache holds per token of a row: keys, values and their scales.",
    ),
    _fact("index.bytes", "bytes", "lower", "Bytes of the index, vectors included."),
    _fact("index.effort", "1", "neither", "The query effort used (nprobe, efSearch)."),
    _fact(
        "memory.resident_bytes",
        "bytes",
        "lower",
        "Resident memory of the run's processes after the load.",
    ),
    _fact(
        "memory.peak_bytes",
        "bytes",
        "lower",
        "Highest resident memory of the run's processes under load.",
        headline=True,
    ),
    _setup("corpus", "Seconds to harvest the corpus (paid once, then kept)."),
    _setup("embedder_load", "Seconds to load the embedder."),
    _setup("embed_corpus", "Seconds to embed the corpus (paid once, then kept)."),
    _setup("index_build", "Seconds to build the index (paid once, then kept)."),
    _setup(
        "index_tuning",
        "Seconds to choose the index or its query effort and measure its recall (paid once, then "
        "kept).",
    ),
    _setup("index_load", "Seconds to load the index."),
    _setup("model_load", "Seconds to load the model."),
    _setup("quantize", "Seconds to quantize the model (paid once, then kept)."),
    _setup("quantized_load", "Seconds to load the quantized weights."),
    _setup("semantic_calibration", "Seconds to calibrate the semantic cache's threshold."),
    _setup("engine_start", "Seconds until the engine was ready."),
    _fact(
        "noise.drift",
        "ratio",
        "neither",
        "Change of the machine's speed during the run: calibration kernel after over before, "
        "minus 1.",
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
