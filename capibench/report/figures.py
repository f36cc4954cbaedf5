"""Figures of a study as SVG text, to stand inside the report's page.

Text stays text (searchable, readable by a screen reader) and takes its colour from the page, so
that one file serves light and dark. Series colours are Okabe and Ito's (2008), told apart with
any colour vision; each is named in a legend or at its mark as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from capibench.records import STAGES, RequestStatus
from capibench.report.canvas import (
    BLUE,
    GREEN,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    Picture,
    svg_text,
)
from capibench.report.formatting import format_value
from capibench.report.runs import Combination
from capibench.report.scatter import pareto

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
    with mpl.rc_context(STYLE):
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
        axis.annotate(f"{_ms(sum(m.values()))} ms", (total, y), xytext=(6, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axis.set_xlim(0, largest * 1.17)
    axis.set_xlabel("mean time per successful request (ms)")
    _rows(axis)
    _legend_above(figure, axis)
    return Picture(
        "Where the time goes",
        "Mean time of a request in every stage, scheduled arrival to answer. Pale colours are "
        "waiting; a request answered from a cache skips the later stages.",
        svg_text(figure, "Stacked bars: mean milliseconds per stage for each combination"),
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
    for offset, (name, (metric, colour, marker)) in zip(
        (0.22, 0, -0.22), series.items(), strict=True
    ):
        _dots(axis, shown, metric, colour, marker, offset, name)
    numbers = [c.number(m) or 0.0 for c in shown for m, _, _ in series.values()]
    if max(numbers) > 30 * max(min(numbers), 1e-6):
        if min(numbers) > 0:
            axis.set_xscale("log")
        else:  # virtual time: a cached answer may take no time at all
            axis.set_xscale("symlog", linthresh=1.0)
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
        svg_text(figure, "Dots with intervals: latency percentiles for each combination"),
    )


def throughput(combinations: list[Combination]) -> Picture | None:
    """Goodput and completions, with the offered rate as the bar to reach."""
    panels = [
        ("goodput_per_s", "goodput (good requests/s)", BLUE),
        ("throughput.output_tokens_per_s", "generated tokens/s", ORANGE),
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
        ("quality.recall_at_k", "recall@k", GREEN),
        ("quality.answer_f1", "answer F1", BLUE),
        ("quality.perplexity", "perplexity", PURPLE),
    ]
    return _dot_panels(
        combinations,
        panels,
        "What it costs in quality",
        "No speed without quality: the share of the exact neighbours that the index found, how "
        "close the answers are to the references, and how well the served model predicts "
        "held-out text (perplexity: lower is better). The axes do not begin at 0.",
    )


def memory(combinations: list[Combination]) -> Picture | None:
    """Peak memory, model and index bytes."""
    panels = [
        ("memory.peak_bytes", "peak memory (MB)", RED),
        ("model.bytes", "weights (MB)", BLUE),
        ("index.bytes", "index (MB)", GREEN),
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
        axis.locator_params(axis="x", nbins=9 // len(known))
        if from_zero:
            axis.set_xlim(left=0)
        low, high = axis.get_xlim()
        axis.set_xlim(low, high + 0.1 * len(known) * (high - low))  # room for the numbers
        _rows(axis, [c.label for c in shown])
        if index:
            axis.tick_params(labelleft=False)
    return Picture(title, caption, svg_text(figure, f"Dots with intervals: {title.lower()}"))


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
                          textcoords="offset points", va="center", fontsize=10.5)  # fmt: skip


def _figure(num_rows: int, num_panels: int, legend_rows: int) -> tuple[Figure, list[Any]]:
    height = 1.0 + 0.42 * num_rows + 0.28 * legend_rows
    figure = Figure(figsize=(7.2, max(height, 2.0)), layout="constrained")
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
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.1,
                  columnspacing=1.4)  # fmt: skip


def _ms(value: float) -> str:
    return format_value("latency.e2e.mean_ms", value)
