"""Gain against latency, and where quantization and batching help each other, as SVG on white."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from figures import WHITE_STYLE
from matplotlib.figure import Figure

from capibench.report.canvas import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)


def write_gain_figures(rows: list[dict[str, Any]], out: Path) -> None:
    """`gain_<model>.svg` and `interaction_<model>.svg`, a panel per prompt length."""
    with mpl.rc_context(WHITE_STYLE):
        for llm in dict.fromkeys(row["llm"] for row in rows):
            mine = [row for row in rows if row["llm"] == llm]
            _panels(
                mine,
                "latency",
                "gain",
                "time of the batch / of one request",
                "requests/s over batch 1",
                out / f"gain_{llm}.svg",
            )
            _panels(
                mine,
                "batch_size",
                "interaction",
                "batch size",
                "both together / product of each alone",
                out / f"interaction_{llm}.svg",
            )


def _panels(
    rows: list[dict[str, Any]], x: str, y: str, x_label: str, y_label: str, path: Path
) -> None:
    prompts = list(dict.fromkeys(row["prompt_tokens"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(max(3.9 * len(prompts) + 0.8, 6.4), 4.2), layout="constrained")
    axes = figure.subplots(1, len(prompts), sharey=True, squeeze=False)[0]
    for axis, prompt in zip(axes, prompts, strict=True):
        for variant, colour in zip(variants, COLOURS, strict=False):
            line = [r for r in rows if (r["prompt_tokens"], r["variant"]) == (prompt, variant)]
            line.sort(key=lambda row: row["batch_size"])
            axis.plot(
                [r[x] for r in line],
                [r[y] for r in line],
                marker="o",
                ms=4,
                lw=1.5,
                color=colour,
                label=variant if axis is axes[0] else None,
            )
            for row in line:
                if row[f"{y}.low"] is not None:
                    axis.plot(
                        [row[x]] * 2,
                        [row[f"{y}.low"], row[f"{y}.high"]],
                        color=colour,
                        lw=3,
                        alpha=0.3,
                        solid_capstyle="round",
                    )
                if y == "gain":
                    axis.annotate(
                        str(row["batch_size"]),
                        (row[x], row[y]),
                        xytext=(4, -11),
                        textcoords="offset points",
                        fontsize=8,
                        color="#5f6670",
                    )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.axhline(1, color="#5f6670", lw=0.8, ls=":")
        axis.set_title(f"prompts of {prompt} tokens")
        axis.set_xlabel(x_label)
    axes[0].set_ylabel(y_label)
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.4)
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
