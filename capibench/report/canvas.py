"""How every figure looks, and how it becomes SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID = "#010203", "#040506", "#070809"  # replaced by the page's colours
_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
)  # fmt: skip

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11.5,
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
    "axes.titlesize": 11.5,
    "axes.titleweight": "normal",
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


def svg_text(figure: Figure, description: str) -> str:
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
