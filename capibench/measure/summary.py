"""From the rows of one run to its metrics and the verdict on their validity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from capibench.measure import formulas
from capibench.measure.measured import Measured, Relevance, Window
from capibench.measure.metrics import METRICS, Metric
from capibench.measure.noise import MAX_DRIFT
from capibench.measure.slo import Slo
from capibench.records import RECORD_COLUMNS, Phase, RequestRecord

# METHOD, rule 2: later than this share of the median latency, or than this, and latency is invalid.
MAX_LATENESS_SHARE = 0.10
MAX_LATENESS_MS = 5.0
LATENESS_FLOOR_MS = 1.0
TAIL_SAMPLES = 10  # rule 8: a percentile needs so many samples beyond it


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One metric of one run. `value` None: unknown, and `flags` says why."""

    value: float | None
    low: float | None
    high: float | None
    n: int | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Validity:
    """Whether the latencies may be read as those of the stack under this load."""

    latency_valid: bool
    saturated: bool | None  # None: too few requests to tell
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """All metrics of the table, and the verdict."""

    metrics: Mapping[str, MetricValue]
    validity: Validity

    def metrics_document(self) -> dict[str, dict[str, Any]]:
        """`metrics` of run.json."""
        return {
            name: {**asdict(value), "flags": list(value.flags)}
            for name, value in self.metrics.items()
        }

    def validity_document(self) -> dict[str, Any]:
        """`validity` of run.json."""
        return {**asdict(self.validity), "reasons": list(self.validity.reasons)}


def rows_frame(rows: Sequence[RequestRecord]) -> pd.DataFrame:
    """Records as a frame with `RECORD_COLUMNS`."""
    return pd.DataFrame([row.as_dict() for row in rows], columns=list(RECORD_COLUMNS))


def summarize(
    rows: pd.DataFrame | Sequence[RequestRecord],
    facts: Mapping[str, float | None],
    window: Window,
    slo: Slo,
    *,
    relevance: Relevance | None = None,
    modeled: bool = False,
    seed: int,
) -> Summary:
    """Every metric of the table for one run.

    Args:
        rows: all rows, as records or as a frame. Of the warm-up only the completions inside the
            window count, as throughput.
        facts: values recorded outside the rows, by metric name (see `metrics.METRICS`).
        window: on the same clock as the rows.
        slo: decides which requests are good.
        relevance: question id → (relevant passage ids, reference answers).
        modeled: times or answers come from a model of a component: no quality is computed.
        seed: of the bootstrap.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else rows_frame(rows)
    measure = frame[frame["phase"] == Phase.MEASURE.value]
    measure = measure.sort_values(["intended_s", "request_id"], kind="stable")
    measured = Measured(measure, frame, facts, window, slo, seed, relevance, modeled)
    metrics = {metric.name: _value(metric, measured) for metric in METRICS}
    return Summary(metrics, _validity(measured, metrics))


def _value(metric: Metric, measured: Measured) -> MetricValue:
    missing = formulas.unmet(measured, metric.needs)
    if missing:
        return MetricValue(None, None, None, None, tuple(_flag(need) for need in missing))
    estimate = metric.formula(measured)
    if estimate is None:
        return MetricValue(None, None, None, None, ("not_recorded",))
    if not math.isfinite(estimate.value):
        return MetricValue(None, None, None, estimate.n, ("not_finite",))
    flags = []
    if metric.unit == "ms":
        flags += _sample_flags(metric, estimate.n or 0)
        if metric.name.startswith("latency.e2e") and not measured.success.all():
            flags.append("successful_only")
    if metric.name == "success_rate" and estimate.value < 1.0:
        flags.append("failed_requests")
    return MetricValue(
        float(estimate.value),
        _finite(estimate.low),
        _finite(estimate.high),
        estimate.n,
        tuple(flags),
    )


def _flag(need: str) -> str:
    if need == "not_modeled":
        return "modeled"
    return f"no_{need}" if need in formulas.NEEDS else "not_recorded"


def _sample_flags(metric: Metric, n: int) -> list[str]:
    tails = {"p95": 0.05, "p99": 0.01, "p99_9": 0.001}
    for label, tail in tails.items():
        if f"{label}_ms" in metric.name and n * tail < TAIL_SAMPLES - 1e-9:
            return ["few_samples"]
    return []


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def allowed_lateness_ms(p50_ms: float) -> float:
    """How late the sender's p99 may be beside a median latency before latencies are invalid.

    METHOD's rule 2 (a tenth of the median, 5 ms at most) with a floor of 1 ms: a stack that
    answers most requests from memory has a median that no operating system's timer could
    undercut tenfold, and a lateness below a millisecond, which is part of every latency shown,
    changes no comparison with stacks that take tens of milliseconds.
    """
    return min(MAX_LATENESS_MS, max(MAX_LATENESS_SHARE * p50_ms, LATENESS_FLOOR_MS))


def _validity(measured: Measured, metrics: Mapping[str, MetricValue]) -> Validity:
    reasons = []
    valid = True
    p50 = metrics["latency.e2e.p50_ms"].value
    late = metrics["sender.lateness_p99_ms"].value
    if p50 is None or late is None:
        valid = False
        reasons.append("no measured request succeeded")
    elif late > allowed_lateness_ms(p50):
        valid = False
        reasons.append(
            f"the sender was late: p99 {late:.2g} ms against a median latency of {p50:.3g} ms "
            f"(allowed: {allowed_lateness_ms(p50):.2g} ms)"
        )
    num_failed = int((~measured.success).sum())
    if num_failed:
        reasons.append(
            f"{num_failed} of {len(measured.frame)} requests were not answered; latencies are of "
            "the others"
        )
    backlog = formulas.backlog(measured)
    if backlog is not None and backlog.saturated:
        reasons.append(
            f"saturated: the queue grew by {backlog.growth:.0f} requests through the window; "
            "latency is a function of the run's length"
        )
    drift = metrics["noise.drift"].value
    if drift is not None and abs(drift) > MAX_DRIFT:
        reasons.append(f"the machine's speed drifted by {drift:+.0%} during the run")
    sum_ok = metrics["stages.sum_ok_share"].value
    if sum_ok is not None and sum_ok < 0.99:
        reasons.append(f"stage times add up for {sum_ok:.1%} of the requests only (99 % expected)")
    return Validity(valid, None if backlog is None else backlog.saturated, tuple(reasons))
