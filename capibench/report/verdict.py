"""Which combination, and why: differences that are differences, ties that are ties.

Goodput decides (METHOD, rule 17); where it does not tell combinations apart, the 95th percentile
of the same requests does. A combination that failed requests is never recommended, and one that
lost quality only where nothing else is left (rule 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from capibench.measure.metrics import BY_NAME
from capibench.measure.stats import Difference, Statistic, paired_difference
from capibench.report.formatting import format_value
from capibench.report.pairing import paired_e2e_s
from capibench.report.results import Study
from capibench.report.runs import Combination

_LATENCY: dict[str, Statistic] = {
    "latency.e2e.p50_ms": "p50",
    "latency.e2e.p95_ms": "p95",
    "latency.e2e.p99_ms": "p99",
    "latency.e2e.mean_ms": "mean",
}
_VARIES_BY_RUN = ("memory.", "setup.")
_COUNTED = {
    "model.bytes",
    "model.disk_bytes",
    "model.compression_ratio",
    "index.bytes",
    "index.effort",
}
MAX_PERPLEXITY_RATIO = 1.02
_SEED = 0  # of the bootstrap: the same runs give the same report
QUALITY = ("quality.recall_at_k", "quality.answer_f1", "quality.perplexity")


def difference(a: Combination, b: Combination, statistic: Statistic = "p95") -> Difference | None:
    """`b` against `a` over the same requests; None where they cannot be compared."""
    if a.ground is None or a.ground != b.ground:
        return None
    e2e_a, e2e_b = paired_e2e_s(a.finished, b.finished)
    found = paired_difference(e2e_a, e2e_b, _SEED, statistic, _noise_floor(a, b))
    if found is None or found.tie or len(a.finished) < 2:
        return found
    # Several repetitions must agree; otherwise the difference is one of the moment.
    signs = set()
    for one in a.finished:
        single = paired_difference(*paired_e2e_s([one], b.finished), _SEED, statistic)
        if single is not None:
            signs.add(single.value > 0)
    tie = len(signs) > 1
    return Difference(found.value, found.low, found.high, found.ratio, found.n, tie)


def _noise_floor(a: Combination, b: Combination) -> float:
    """By how much the machine itself differed between these runs."""
    times = [time for run in (*a.finished, *b.finished) for time in run.calibration_s]
    return max(times) / min(times) - 1.0 if times else 0.0


def is_tie(a: Combination, b: Combination, metric: str) -> bool | None:
    """Whether the metric tells `a` and `b` apart; None where it cannot be compared.

    Latencies are compared request by request; anything else by its intervals. What is counted is
    exact; what differs from run to run (a process's memory, a set-up time) has the range of its
    repeated runs; any other value without an interval tells nothing apart.
    """
    if a.ground is None or a.ground != b.ground:
        return None
    if metric in _LATENCY:
        found = difference(a, b, _LATENCY[metric])
        if found is not None:
            return found.tie
    if a.number(metric) is None or b.number(metric) is None:
        return None
    low_one, high_one = _bounds(a, metric)
    low_other, high_other = _bounds(b, metric)
    return low_one <= high_other and low_other <= high_one


def _bounds(c: Combination, metric: str) -> tuple[float, float]:
    """Between which ends a known value lies; infinite where nothing bounds it."""
    value = c.value(metric)
    if value.value is not None and metric in _COUNTED:
        return value.value, value.value
    if metric.startswith(_VARIES_BY_RUN):
        found = [v for run in c.finished if (v := run.value(metric).value) is not None]
        return (min(found), max(found)) if len(found) > 1 else (-math.inf, math.inf)
    return (
        -math.inf if value.low is None else value.low,
        math.inf if value.high is None else value.high,
    )


def is_bounded(c: Combination, metric: str) -> bool:
    """Whether anything is known about how exact the value is."""
    return any(math.isfinite(end) for end in _bounds(c, metric))


def best(
    candidates: list[Combination], metric: str
) -> tuple[Combination | None, list[Combination]]:
    """The best of `candidates` by its value, and those that the metric does not tell from it."""
    known = [c for c in candidates if c.number(metric) is not None]
    if not known:
        return None, []
    sign = -1.0 if BY_NAME[metric].better == "higher" else 1.0
    leader = min(known, key=lambda c: sign * (c.number(metric) or 0.0))
    return leader, [c for c in known if c is not leader and is_tie(leader, c, metric)]


@dataclass(frozen=True)
class Verdict:
    """The answer on one ground."""

    choice: Combination | None
    ties: tuple[Combination, ...]
    reasons: tuple[str, ...]


def verdict(study: Study, combinations: list[Combination]) -> Verdict:
    """Recommend one of `combinations` (all on the same ground), or say why none."""
    reasons: list[str] = []
    able = []
    for c in combinations:
        if not c.finished:
            continue
        if c.failed_requests:
            reasons.append(f"{c.label} failed requests and is not recommended")
        else:
            able.append(c)
    if not able:
        return Verdict(None, (), (*reasons, "no combination answered every request"))
    losses = {c.label: loss for c in able if (loss := _quality_loss(study.baseline_of(c), c))}
    good = [c for c in able if c.label not in losses]
    fate = "is not recommended" if good else "is considered only for want of a better one"
    reasons += [f"{label} loses quality ({loss}) and {fate}" for label, loss in losses.items()]
    able = good or able
    steady = [c for c in able if not c.saturated]
    if steady and len(steady) < len(able):
        names = ", ".join(c.label for c in able if c.saturated)
        reasons.append(
            f"saturated by this load, so its latency depends on the run's length: {names}"
        )
    pool = steady or able
    leader, ties = best(pool, "goodput_per_s")
    if leader is None:
        return Verdict(None, (), (*reasons, "no run recorded its goodput"))
    goodput = format_value("goodput_per_s", leader.number("goodput_per_s"))
    if not ties:
        reasons.insert(0, f"the highest goodput: {goodput} requests/s within their objectives")
        return Verdict(leader, (), (*reasons, *_against_baseline(study, leader)))
    tied = [leader, *ties]
    sound = [c for c in tied if _tail_is_sound(c)]
    choice, close = best(sound or tied, "latency.e2e.p95_ms")
    if choice is None:
        return Verdict(None, tuple(tied), tuple(reasons))
    reasons.insert(
        0,
        f"goodput does not tell {len(tied)} of {len(able)} combinations apart (about {goodput} "
        "requests/s within their objectives), so the 95th percentile of the same requests decides",
    )
    return Verdict(choice, tuple(close), (*reasons, *_against_baseline(study, choice)))


def _quality_loss(baseline: Combination, c: Combination) -> str:
    """In what `c` is worse beyond doubt than the baseline; empty where it is not."""
    lost = [
        f"{QUALITY_NAMES[metric]} {format_value(metric, c.number(metric))} against "
        f"{format_value(metric, baseline.number(metric))}"
        for metric in ("quality.answer_f1", "quality.recall_at_k")
        if is_tie(baseline, c, metric) is False
        and (c.number(metric) or 0.0) < (baseline.number(metric) or 0.0)
    ]
    ratio = c.value("quality.perplexity_ratio")
    if ratio.low is not None and ratio.low > MAX_PERPLEXITY_RATIO:
        value = format_value("quality.perplexity_ratio", ratio.value)
        lost.append(f"{value} times the unquantized model's perplexity")
    return ", ".join(lost)


def _tail_is_sound(combination: Combination) -> bool:
    """The sender's lateness is a small part of the p95 (it may still be a large one of the p50)."""
    p95 = combination.number("latency.e2e.p95_ms")
    late = combination.number("sender.lateness_p99_ms")
    return p95 is not None and late is not None and late <= 0.1 * p95


def _against_baseline(study: Study, choice: Combination) -> list[str]:
    baseline = study.baseline_of(choice)
    if baseline is choice:
        return []
    sentences = []
    found = difference(baseline, choice, "p95")
    if found is not None:
        if found.tie:
            sentences.append("its p95 latency is not distinguishable from the baseline's")
        else:
            word = "below" if found.value < 0 else "above"
            sentences.append(
                f"its p95 latency is {abs(found.value) * 1e3:.0f} ms "
                f"[{_between(found)}] {word} the baseline's ({found.ratio:.2f}×)"
            )
    for metric in QUALITY:
        tie = is_tie(baseline, choice, metric)
        one, other = baseline.number(metric), choice.number(metric)
        if tie is None or one is None or other is None:
            continue
        name = QUALITY_NAMES[metric]
        values = f"{format_value(metric, other)} against {format_value(metric, one)}"
        worse = (other > one) == (BY_NAME[metric].better == "lower")
        if one == other:
            sentences.append(f"{name} is unchanged ({format_value(metric, one)})")
        elif tie:
            sentences.append(f"{name} is a tie with the baseline ({values})")
        else:
            sentences.append(f"{name} is {'worse' if worse else 'better'}: {values}")
    return sentences


QUALITY_NAMES = {
    "quality.recall_at_k": "recall@k",
    "quality.answer_f1": "answer F1",
    "quality.perplexity": "perplexity",
}


def _between(found: Difference) -> str:
    ends = sorted((abs(found.low) * 1e3, abs(found.high) * 1e3))
    return f"{ends[0]:.0f}, {ends[1]:.0f}"
