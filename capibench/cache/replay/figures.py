"""Miss-ratio curves and seconds saved over the size of the cache, as SVG for the page."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from capibench.cache.replay.replay import Outcome, Replayed
from capibench.report.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    Picture,
    svg_text,
)

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
_MARKS = ("o", "s", "^", "D", "v")  # with the colours, thirty lines that can be told apart
_WIDTH, _HEIGHT = 8.2, 5.2


def pictures(replayed: Replayed) -> list[Picture]:
    """The figures of a replay; seconds only where costs are known."""
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        drawn = [_miss_ratio(replayed)]
        if replayed.infinite.saved_share is not None:
            drawn.append(_seconds(replayed))
    return drawn


def _miss_ratio(replayed: Replayed) -> Picture:
    belady = [c.belady.hit_ratio for c in replayed.ceilings if c.belady is not None]
    figure = _lines(
        replayed,
        lambda outcome: 100 * (1 - outcome.hit_ratio),
        [100 * (1 - ratio) for ratio in belady],
        100 * (1 - replayed.infinite.hit_ratio),
        "belady",
        "miss ratio, %",
    )
    return Picture(
        "Miss ratio over size",
        "Lower is better. Dashed: Belady, who knows the future; dotted: a cache without end.",
        svg_text(figure, "Lines: miss ratio of each policy over the size of the cache"),
    )


def _seconds(replayed: Replayed) -> Picture:
    bound = [c.saved_share for c in replayed.ceilings if c.saved_share is not None]
    infinite = replayed.infinite.saved_share
    assert infinite is not None
    figure = _lines(
        replayed,
        lambda outcome: 100 * (outcome.saved_share or 0.0),
        [100 * share for share in bound],
        100 * infinite,
        "best possible, at most",
        "seconds saved, % of all",
    )
    return Picture(
        "Seconds saved over size",
        "Higher is better: the time that recomputing the hits would have taken.",
        svg_text(figure, "Lines: share of seconds saved by each policy over the size of the cache"),
    )


def _lines(
    replayed: Replayed,
    value: Callable[[Outcome], float],
    bound: list[float],
    infinite: float,
    bound_label: str,
    label: str,
) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axis = figure.add_subplot()
    shares = [100 * c.capacity_bytes / replayed.working_set_bytes for c in replayed.ceilings]
    names = list(dict.fromkeys(outcome.policy for outcome in replayed.outcomes))
    for number, name in enumerate(names):
        axis.plot(
            shares,
            [value(outcome) for outcome in replayed.outcomes if outcome.policy == name],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKS[number // len(_COLOURS) % len(_MARKS)],
            markersize=5,
            linewidth=1.6,
            label=name,
        )
    if len(bound) == len(shares):
        axis.plot(shares, bound, color=INK, linestyle="--", linewidth=1.6, label=bound_label)
    axis.axhline(infinite, color=MUTED, linestyle=":", linewidth=1.4, label="infinite cache")
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("size of the cache, % of the working set")
    axis.set_ylabel(label)
    figure.legend(loc="outside right upper")
    return figure
