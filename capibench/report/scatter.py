"""Speed against quality in one picture."""

from __future__ import annotations

from matplotlib.figure import Figure

from capibench.measure.stats import pareto_front
from capibench.report.canvas import BLUE, MUTED, Picture, svg_text
from capibench.report.runs import Combination

X_METRIC, Y_METRIC = "latency.e2e.p95_ms", "quality.answer_f1"
# Where labels of neighbouring points go, in turn, so that they do not cover each other.
_LABEL_OFFSETS = ((7, 7), (7, -16), (7, 22), (7, -31))


def pareto(combinations: list[Combination]) -> Picture | None:
    """Tail latency against answer quality; what nothing else beats is connected."""
    points = front_points(combinations)
    if len(points) < 2:
        return None
    figure = Figure(figsize=(7.2, 4.3), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(visible=True, axis="both")
    line = sorted((x, y) for _, x, y, on in points if on)
    axis.plot([x for x, _ in line], [y for _, y in line], color=BLUE, lw=1.2, ls="--", zorder=2,
              label="Pareto front: nothing else is both faster and better")  # fmt: skip
    for number, (c, x, y, on) in enumerate(sorted(points, key=lambda point: point[1])):
        sides = [_error_bar(c, X_METRIC), _error_bar(c, Y_METRIC)]
        axis.errorbar(x, y, xerr=sides[0], yerr=sides[1], color=MUTED, lw=0.8, zorder=1)
        axis.plot(x, y, "o", ms=8, color=BLUE if on else "#9AA0A8", zorder=3)
        offset = _LABEL_OFFSETS[number % len(_LABEL_OFFSETS)]
        axis.annotate(c.label, (x, y), xytext=offset, textcoords="offset points")
    axis.set_xlabel("p95 of the end-to-end latency (ms) — further left is better")
    axis.set_ylabel("token F1 of the answers — higher is better")
    axis.margins(x=0.14, y=0.25)
    axis.legend(loc="lower right")
    return Picture(
        "Speed against quality",
        "Every combination with 95 % intervals. Where the intervals overlap in one direction, the "
        "combinations are not told apart in it. What failed requests is never on the front.",
        svg_text(figure, "Scatter: p95 latency against answer F1, Pareto front connected"),
    )


def front_points(
    combinations: list[Combination],
) -> list[tuple[Combination, float, float, bool]]:
    """(combination, p95 in ms, answer F1, on the Pareto front) where both are known.

    What failed requests is never on the front: the latency of the others says too little.
    """
    points = [
        (c, x, y)
        for c in combinations
        if (x := c.number(X_METRIC)) is not None and (y := c.number(Y_METRIC)) is not None
    ]
    able = [(x, y) for c, x, y in points if not c.failed_requests]
    unbeaten = iter(pareto_front(able, ("lower", "higher")))
    return [(c, x, y, not c.failed_requests and next(unbeaten)) for c, x, y in points]


def _error_bar(c: Combination, metric: str) -> list[list[float]]:
    """What lies below and above the value, as matplotlib wants it; 0 where it is not bounded."""
    v = c.value(metric)
    assert v.value is not None
    below = 0.0 if v.low is None else max(v.value - v.low, 0.0)
    above = 0.0 if v.high is None else max(v.high - v.value, 0.0)
    return [[below], [above]]
