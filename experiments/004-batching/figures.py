"""The study as pictures that stand alone: SVG, readable on white, series named where they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from summary import Interval, grouped, interval, values_of

from capibench.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, SKY, STYLE

COLOURS = {
    "greedy": "#111111",
    "none": "#9AA0A8",
    "adaptive": BLUE,
    "priority": RED,
    "continuous": GREEN,
    "fixed_size": ORANGE,
    "time_based": PURPLE,
    "load_balanced": SKY,
}
ON_WHITE = {INK: "#1c1e21", MUTED: "#5f6670"}
WHITE_STYLE = {
    **{key: ON_WHITE.get(value, value) for key, value in STYLE.items() if isinstance(value, str)},
    **{key: value for key, value in STYLE.items() if not isinstance(value, str)},
    "axes.edgecolor": "#c9ced6",
    "grid.color": "#e3e6ea",
    "axes.grid.axis": "both",
}


def write_figures(cells: list[dict[str, Any]], out: Path) -> None:
    """`share_<mix>_<machine>.svg`, and `latency_...` with the p99 of those answered."""
    with mpl.rc_context(WHITE_STYLE):
        for mix in values_of(cells, "mix"):
            for machine in values_of(cells, "machine"):
                block = [row for row in cells if (row["mix"], row["machine"]) == (mix, machine)]
                if block:
                    _lines(block, "share", out / f"share_{mix}_{machine}.svg")
                    _lines(block, "latency", out / f"latency_{mix}_{machine}.svg")


def _lines(block: list[dict[str, Any]], what: str, path: Path) -> None:
    """A panel per kind of arrivals; x: load, y: share of the oracle, or p99 in ms.

    Bands are 95 % intervals over repeats; the dashed line is at 90 %.
    """
    kinds, names = values_of(block, "arrivals"), values_of(block, "strategy")
    figure = Figure(figsize=(max(4.1 * len(kinds) + 0.6, 6.4), 4.4), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    groups = grouped(block)
    mix, machine = block[0]["mix"], block[0]["machine"]
    for axis, kind in zip(axes, kinds, strict=True):
        for name in names:
            loads = [
                load
                for load in values_of(block, "load")
                if (mix, machine, kind, load, name) in groups
            ]
            found = [_value(groups[mix, machine, kind, load, name], what) for load in loads]
            shown = [(load, one) for load, one in zip(loads, found, strict=True) if one is not None]
            if not shown:
                continue
            xs = [load for load, _ in shown]
            colour = COLOURS.get(name)
            (line,) = axis.plot(
                xs,
                [one.mean for _, one in shown],
                marker="o",
                ms=3.5,
                lw=1.6,
                color=colour,
                label=name if axis is axes[0] else None,
            )
            if all(one.low is not None for _, one in shown):
                axis.fill_between(
                    xs,
                    [one.low for _, one in shown],
                    [one.high for _, one in shown],
                    color=line.get_color(),
                    alpha=0.13,
                    lw=0,
                )
        axis.set_title(kind)
        axis.set_xlabel("offered load / capacity")
        if what == "latency":
            axis.set_yscale("log")
        else:
            axis.axhline(100, color="#5f6670", lw=0.8, ls=":")
            axis.axhline(90, color="#5f6670", lw=0.8, ls="--")
            axis.set_ylim(-3, 105)
    axes[0].set_ylabel(
        "in time, % of the oracle's bound" if what == "share" else "p99 of those answered (ms)"
    )
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.4)
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def _value(rows: list[dict[str, Any]], what: str) -> Interval | None:
    if what == "share":
        return interval([100 * row["good"] / row["oracle_upper_bound"] for row in rows])
    latencies = [row["latency_p99_ms"] for row in rows if row["latency_p99_ms"] is not None]
    return interval(latencies) if latencies else None
