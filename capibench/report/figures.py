"""Figures of a study as SVG text, to stand inside the report's page.

Text stays text (searchable, readable by a screen reader) and takes its colour from the page, so
that one file serves light and dark. Series colours are Okabe and Ito's (2008), told apart with
any colour vision; each is named in a legend or at its mark as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from capibench.measure.stats import pareto_front
from capibench.records import STAGES, RequestStatus
from capibench.report.formatting import format_value
from capibench.report.results import Combination

INK, MUTED, GRID = "#010203", "#040506", "#070809"  # replaced by the page's colours
_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
)  # fmt: skip

STAGE_GROUPS: dict[str, tuple[tuple[str, ...], str]] = {
    "sender": (("sender",), "#8A8F98"),
    "cache look-ups": (("result_cache", "embedding_cache", "output_cache"), PURPLE),
    "waiting to embed": (("embed_queue",), "#F3CF80"),
    "embed": (("embed",), ORANGE),
    "waiting to search": (("search_queue",), "#7FCEB9"),
    "search": (("search",), GREEN),
    "prompt": (("prompt",), "#B0813A"),
    "waiting to generate": (("generate_queue",), SKY),
    "generate": (("generate",), BLUE),
    "store": (("store",), RED),
}
assert sorted(s for stages, _ in STAGE_GROUPS.values() for s in stages) == sorted(STAGES)

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "svg.hashsalt": "capibench",
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: its heading, one sentence on how to read it, and the SVG."""

    title: str
    caption: str
    svg: str


def pictures(combinations: list[Combination]) -> list[Picture]:
    """All figures of combinations that share a ground; those without data are left out."""
    drawers: tuple[Callable[[list[Combination]], Picture | None], ...] = (
        latency_by_stage,
        latency_percentiles,
        throughput,
        quality,
        memory,
        pareto,
    )
    with mpl.rc_context(_STYLE):
        drawn = [draw(combinations) for draw in drawers]
    return [picture for picture in drawn if picture is not None]


def latency_by_stage(combinations: list[Combination]) -> Picture | None:
    """Mean milliseconds per stage of successful requests, stacked."""
    means = [_stage_means_ms(c) for c in combinations]
    shown = [(c.label, m) for c, m in zip(combinations, means, strict=True) if m is not None]
    if not shown:
        return None
    figure, (axis,) = _figure(len(shown), 1, legend_rows=2)
    labels, left = [label for label, _ in shown], np.zeros(len(shown))
    largest = max(sum(m.values()) for _, m in shown)
    for group, (_, colour) in STAGE_GROUPS.items():
        widths = np.array([m[group] for _, m in shown])
        if widths.max() < 0.002 * largest:
            continue  # too thin to see; the tables have the number
        axis.barh(labels, widths, left=left, color=colour, label=group, height=0.62)
        left += widths
    for y, (total, (_, m)) in enumerate(zip(left, shown, strict=True)):
        axis.text(total, y, f"  {_ms(sum(m.values()))} ms", va="center")
    axis.set_xlim(0, largest * 1.13)
    axis.set_xlabel("mean time per successful request (ms)")
    _rows(axis)
    _legend_above(figure, axis)
    return Picture(
        "Where the time goes",
        "Mean time of a request in every stage, scheduled arrival to answer. Pale colours are "
        "waiting; a request answered from a cache skips the later stages.",
        _svg(figure, "Stacked bars: mean milliseconds per stage for each combination"),
    )


def _stage_means_ms(c: Combination) -> dict[str, float] | None:
    frames = [run.rows for run in c.finished if not run.rows.empty]
    sums: list[dict[str, float]] = []
    for rows in frames:
        ok = rows[rows["status"] == RequestStatus.OK.value]
        if len(ok):
            sums.append(
                {
                    group: float(sum(ok[f"{stage}_s"].mean() for stage in stages)) * 1e3
                    for group, (stages, _) in STAGE_GROUPS.items()
                }
            )
    if not sums:
        return None
    return {group: float(np.mean([s[group] for s in sums])) for group in STAGE_GROUPS}


def latency_percentiles(combinations: list[Combination]) -> Picture | None:
    """p50, p95 and p99 as dots with their intervals."""
    series = {
        "p50": ("latency.e2e.p50_ms", GREEN, "o"),
        "p95": ("latency.e2e.p95_ms", BLUE, "s"),
        "p99": ("latency.e2e.p99_ms", RED, "D"),
    }
    shown = [c for c in combinations if c.number("latency.e2e.p50_ms") is not None]
    if not shown:
        return None
    figure, (axis,) = _figure(len(shown), 1, legend_rows=1)
    for offset, (name, (metric, colour, marker)) in zip((0.22, 0, -0.22), series.items(), strict=True):
        _dots(axis, shown, metric, colour, marker, offset, name)
    numbers = [c.number(m) or 0.0 for c in shown for m, _, _ in series.values()]
    if max(numbers) > 30 * max(min(numbers), 1e-6):
        axis.set_xscale("log")
        axis.set_xlabel("end-to-end latency (ms, logarithmic)")
        from matplotlib.ticker import FuncFormatter

        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        axis.set_xlim(left=0)
        axis.set_xlabel("end-to-end latency (ms)")
    _rows(axis, [c.label for c in shown])
    _legend_above(figure, axis)
    return Picture(
        "How long requests take",
        "Percentiles of the end-to-end latency from the scheduled arrival, with 95 % intervals. "
        "A line with an arrow has no upper bound: too few requests lie beyond that percentile.",
        _svg(figure, "Dots with intervals: latency percentiles for each combination"),
    )


def throughput(combinations: list[Combination]) -> Picture | None:
    """Goodput and completions, with the offered rate as the bar to reach."""
    panels = [
        ("goodput_per_s", "goodput (requests/s within their objectives)", BLUE),
        ("throughput.output_tokens_per_s", "generated tokens per second", ORANGE),
    ]
    return _dot_panels(
        combinations,
        panels,
        "How much gets done",
        "Goodput counts only requests that were answered within their objectives. At a load that "
        "a stack can bear it equals the offered rate, and only its latency tells it from others. "
        "Answers from a cache generate no tokens.",
    )


def quality(combinations: list[Combination]) -> Picture | None:
    """Recall, answer F1 and perplexity, side by side."""
    panels = [
        ("quality.recall_at_k", "recall@k against exact search", GREEN),
        ("quality.answer_f1", "token F1 of the answers", BLUE),
        ("quality.perplexity", "perplexity (lower is better)", PURPLE),
    ]
    return _dot_panels(
        combinations,
        panels,
        "What it costs in quality",
        "No speed without quality: the share of the exact neighbours that the index found, how "
        "close the answers are to the references, and how well the served model predicts "
        "held-out text. Note that the axes do not begin at 0.",
    )


def memory(combinations: list[Combination]) -> Picture | None:
    """Peak memory, model and index bytes."""
    panels = [
        ("memory.peak_bytes", "peak memory of the process (MB)", RED),
        ("model.bytes", "model weights (MB)", BLUE),
        ("index.bytes", "index with vectors (MB)", GREEN),
    ]
    return _dot_panels(
        combinations,
        panels,
        "What it occupies",
        "Bytes counted, not computed: resident memory of the process at its peak, storage of the "
        "weights with scales, and the index as it is searched.",
        scale=1e-6,
        from_zero=True,
    )


def pareto(combinations: list[Combination]) -> Picture | None:
    """Tail latency against answer quality; what nothing else beats is connected."""
    x_metric, y_metric = "latency.e2e.p95_ms", "quality.answer_f1"
    points = [
        (c, x, y)
        for c in combinations
        if (x := c.number(x_metric)) is not None and (y := c.number(y_metric)) is not None
    ]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(8.6, 4.3), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(visible=True, axis="both")
    front = pareto_front([(x, y) for _, x, y in points], ("lower", "higher"))
    line = sorted((x, y) for (_, x, y), on in zip(points, front, strict=True) if on)
    axis.plot([x for x, _ in line], [y for _, y in line], color=BLUE, lw=1.2, ls="--", zorder=2,
              label="Pareto front: nothing else is both faster and better")  # fmt: skip
    for number, ((c, x, y), on) in enumerate(zip(points, front, strict=True)):
        for value, metric, kind in ((x, x_metric, "xerr"), (y, y_metric, "yerr")):
            v = c.value(metric)
            below = value - v.low if v.low is not None else 0.0
            above = v.high - value if v.high is not None else 0.0
            axis.errorbar(x, y, **{kind: [[max(below, 0)], [max(above, 0)]]}, color=MUTED, lw=0.8,
                          zorder=1)  # fmt: skip
        axis.plot(x, y, "o", ms=8, color=BLUE if on else "#9AA0A8", zorder=3)
        above_point = number % 2 == 0
        axis.annotate(c.label, (x, y), xytext=(7, 7 if above_point else -15),
                      textcoords="offset points")  # fmt: skip
    axis.set_xlabel("p95 of the end-to-end latency (ms) — further left is better")
    axis.set_ylabel("token F1 of the answers — higher is better")
    axis.margins(x=0.14, y=0.25)
    axis.legend(loc="lower right")
    return Picture(
        "Speed against quality",
        "Every combination with 95 % intervals. Where the intervals overlap in one direction, the "
        "combinations are not told apart in it.",
        _svg(figure, "Scatter: p95 latency against answer F1, Pareto front connected"),
    )


def _dot_panels(
    combinations: list[Combination],
    panels: list[tuple[str, str, str]],
    title: str,
    caption: str,
    *,
    scale: float = 1.0,
    from_zero: bool = False,
) -> Picture | None:
    """One panel of dots with intervals per metric that somebody has."""
    known = [p for p in panels if any(c.number(p[0]) is not None for c in combinations)]
    if not known:
        return None
    shown = list(combinations)
    figure, axes = _figure(len(shown), len(known), legend_rows=0)
    for index, (axis, (metric, name, colour)) in enumerate(zip(axes, known, strict=True)):
        _dots(axis, shown, metric, colour, "o", 0.0, "", scale=scale, written=True)
        axis.set_title(name, pad=10)
        if from_zero:
            axis.set_xlim(left=0)
        low, high = axis.get_xlim()
        axis.set_xlim(low, high + 0.16 * (high - low))  # room for the numbers
        _rows(axis, [c.label for c in shown])
        if index:
            axis.tick_params(labelleft=False)
    return Picture(title, caption, _svg(figure, f"Dots with intervals: {title.lower()}"))


def _dots(
    axis: Any,
    combinations: list[Combination],
    metric: str,
    colour: str,
    marker: str,
    offset: float,
    name: str,
    *,
    scale: float = 1.0,
    written: bool = False,
) -> None:
    labelled = False
    for row, c in enumerate(combinations):
        v = c.value(metric)
        y = row - offset
        if v.value is None:
            if written:
                axis.text(0.02, y, "not measured", color=MUTED, va="center", style="italic",
                          transform=axis.get_yaxis_transform())  # fmt: skip
            continue
        value = v.value * scale
        low = value if v.low is None else v.low * scale
        high = value if v.high is None else v.high * scale
        axis.plot([low, high], [y, y], color=colour, lw=2.4, alpha=0.45, solid_capstyle="round")
        if v.high is None and v.low is not None:
            axis.annotate("", (value, y), xytext=(16, 0), textcoords="offset points", va="center",
                          arrowprops={"arrowstyle": "<-", "color": colour, "alpha": 0.6,
                                      "shrinkA": 0, "shrinkB": 4})  # fmt: skip
        axis.plot([value], [y], marker=marker, color=colour, ms=7, ls="",
                  label=None if labelled or not name else name)  # fmt: skip
        labelled = True
        if written:
            axis.annotate(format_value(metric, v.value), (high, y), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=9.5)  # fmt: skip


def _figure(num_rows: int, num_panels: int, legend_rows: int) -> tuple[Figure, list[Any]]:
    height = 1.0 + 0.42 * num_rows + 0.28 * legend_rows
    figure = Figure(figsize=(8.6, max(height, 2.0)), layout="constrained")
    axes = figure.subplots(1, num_panels, squeeze=False)[0]
    return figure, list(axes)


def _rows(axis: Any, labels: Iterable[str] | None = None) -> None:
    if labels is not None:
        names = list(labels)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
    else:
        axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", length=0)


def _legend_above(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1.1)


def _ms(value: float) -> str:
    return format_value("latency.e2e.mean_ms", value)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element that scales, without anything that points outside."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
    for colour, variable in _PAGE.items():
        text = text.replace(colour, variable)
    return text
