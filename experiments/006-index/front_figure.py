"""Recall against latency of all that was judged, as SVG on white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from capibench.measure.stats import pareto_front
from capibench.report.canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, SKY, STYLE

Row = dict[str, Any]
COLOURS = {
    "flat": "#111111",
    "hybrid": BLUE,
    "pq": GREEN,
    "hnsw": ORANGE,
    "hnsw_sq8": RED,
    "rabitq": PURPLE,
    "ivf": SKY,
}
_ON_WHITE = {INK: "#1c1e21", MUTED: "#5f6670"}
WHITE_STYLE = {
    **{k: _ON_WHITE.get(v, v) for k, v in STYLE.items() if isinstance(v, str)},
    **{k: v for k, v in STYLE.items() if not isinstance(v, str)},
    "axes.edgecolor": "#c9ced6",
    "grid.color": "#e3e6ea",
    "axes.grid.axis": "both",
}


def write_front(points: list[Row], picks: list[Row], path: Path) -> None:
    """A point per setting, the front over recall and latency as a line, the picks by strategy."""
    with mpl.rc_context(WHITE_STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axis = figure.add_subplot()
        for family in dict.fromkeys(p["family"] for p in points):
            own = [p for p in points if p["family"] == family]
            axis.plot(
                [p["ms"] for p in own],
                [p["recall"] for p in own],
                "o",
                ms=5,
                color=COLOURS.get(family, MUTED),
                label=family,
                zorder=3,
            )
        unbeaten = pareto_front([(p["recall"], p["ms"]) for p in points], ("higher", "lower"))
        line = sorted((p["ms"], p["recall"]) for p, on in zip(points, unbeaten, strict=True) if on)
        axis.plot(
            [x for x, _ in line], [y for _, y in line], color="#9AA0A8", lw=1, ls="--", zorder=2
        )
        by_pick: dict[str, list[str]] = {}
        for row in picks:
            by_pick.setdefault(row["pick"], []).append(row["strategy"])
        for number, (name, strategies) in enumerate(by_pick.items()):
            row = next(p for p in points if p["name"] == name)
            axis.annotate(
                ", ".join(strategies),
                (row["ms"], row["recall"]),
                xytext=(8, -14 - 11 * (number % 3)),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.7},
            )
        axis.set_xscale("log")
        first = points[0]
        axis.set_xlabel(f"ms per query, {first['batch_size']} at once, one thread")
        axis.set_ylabel("recall@10 on fresh queries")
        axis.set_title(f"{first['data']}: {'real embeddings' if first['real'] else 'made vectors'}")
        axis.legend(loc="lower right", fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})
