"""Miss-ratio curves and seconds saved over the size of the cache, as SVG for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
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

# What stands beside the policies: how tables and figures call it.
BEST = "best possible (belady)"  # one size, nothing goes stale: no policy has more, Belady as much
AT_MOST = "possible at most"  # no policy has more, and perhaps none as much
BELADY = "belady (no bound)"  # where entries differ in size or go stale
INFINITE = "infinite cache"

Style = dict[str, Any]  # of a line, as Matplotlib takes it

_COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
_MARKS = ("o", "s", "^", "D", "v")  # with the colours, thirty lines that can be told apart
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (7, 1.5, 1.5, 1.5)))
_WIDTH, _HEIGHT = 8.2, 5.2
_LINE_HEIGHT = 0.058  # of a label, as a share of the axis


def bound_name(replayed: Replayed) -> str | None:
    """What the hit ratios are bounded by; None where hits decide which look-ups happen."""
    if any(ceiling.hit_ratio is None for ceiling in replayed.ceilings):
        return None
    return BEST if all(ceiling.is_reached for ceiling in replayed.ceilings) else AT_MOST


def pictures(replayed: Replayed) -> list[Picture]:
    """The figures of a replay; seconds only where costs are known."""
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        drawn = [_miss_ratio(replayed)]
        if replayed.infinite.saved_share is not None:
            drawn.append(_seconds(replayed))
    return drawn


def _miss_ratio(replayed: Replayed) -> Picture:
    bound = bound_name(replayed)
    lines: dict[str, list[float]] = {}
    caption = "Lower is better. Dotted: a cache without end."
    if bound is not None:
        lines[bound] = [1 - (ceiling.hit_ratio or 0.0) for ceiling in replayed.ceilings]
        caption += " Dashed: what no policy goes below"
        caption += ", and Belady, who knows the future, reaches." if bound == BEST else (
            "; perhaps none reaches it, because entries differ in size or go stale. Belady knows "
            "the future and is no bound there."
        )  # fmt: skip
    if bound == AT_MOST:
        lines[BELADY] = [1 - c.belady.hit_ratio for c in replayed.ceilings if c.belady is not None]
    figure = _lines(
        replayed,
        lambda outcome: 1 - outcome.hit_ratio,
        lines,
        1 - replayed.infinite.hit_ratio,
        "miss ratio, %",
    )
    return Picture(
        "Miss ratio over size",
        caption,
        svg_text(figure, "Lines: miss ratio of each policy over the size of the cache"),
    )


def _seconds(replayed: Replayed) -> Picture:
    bound = [c.saved_share for c in replayed.ceilings if c.saved_share is not None]
    infinite = replayed.infinite.saved_share
    assert infinite is not None
    figure = _lines(
        replayed,
        lambda outcome: outcome.saved_share or 0.0,
        {AT_MOST: bound} if bound else {},
        infinite,
        "seconds saved, % of all",
    )
    return Picture(
        "Seconds saved over size",
        "Higher is better: the time that recomputing the hits would have taken."
        + (" Dashed: no policy saves more, and perhaps none as much." if bound else ""),
        svg_text(figure, "Lines: share of seconds saved by each policy over the size of the cache"),
    )


def _lines(
    replayed: Replayed,
    value: Callable[[Outcome], float],
    knowing: dict[str, list[float]],
    infinite: float,
    label: str,
) -> Figure:
    """Shares as percent over sizes; `knowing` are the lines of what knows the future."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axis = figure.add_subplot()
    shares = [100 * c.capacity_bytes / replayed.working_set_bytes for c in replayed.ceilings]
    ends: dict[str, tuple[float, Style]] = {}  # name → the last value, and how its line looks

    def draw(name: str, values: Sequence[float], **style: Any) -> None:
        percent = [100 * share for share in values]
        style |= {"linewidth": 1.6, "markersize": 5.5}
        axis.plot(shares, percent, **style)
        ends[name] = (percent[-1], style)

    names = list(dict.fromkeys(outcome.policy for outcome in replayed.outcomes))
    for number, name in enumerate(names):
        turn = number // len(_COLOURS)
        draw(
            name,
            [value(outcome) for outcome in replayed.outcomes if outcome.policy == name],
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKS[turn % len(_MARKS)],
            linestyle=_DASHES[turn % len(_DASHES)],
            markerfacecolor="none" if turn else None,
        )
    for (name, values), (marker, dash) in zip(
        knowing.items(), (("*", "--"), ("P", "-.")), strict=False
    ):
        draw(name, values, color=INK, marker=marker, linestyle=dash)
        if len(shares) == 1:
            axis.axhline(100 * values[0], color=INK, linestyle=dash, linewidth=1.2)
    axis.axhline(100 * infinite, color=MUTED, linestyle=":", linewidth=1.4)
    ends[INFINITE] = (100 * infinite, {"color": MUTED})
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
    if len(shares) == 1:
        axis.set_xlim(0.9 * shares[0], 1.1 * shares[0])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("size of the cache, % of the working set")
    axis.set_ylabel(label)
    _name_at_the_end(axis, shares[-1], ends)
    return figure


def _name_at_the_end(axis: Axes, last: float, ends: Mapping[str, tuple[float, Style]]) -> None:
    """Each name right of its line, marked and tied to its end, in the order of the values."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    names = sorted(ends, key=lambda name: ends[name][0])
    wanted = [(ends[name][0] - low) / (high - low) for name in names]
    for name, place in zip(names, _apart(wanted), strict=True):
        end, style = ends[name]
        axis.annotate(
            "",
            (last, end),
            (1.07, place),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": style["color"], "linewidth": 0.9},
        )
        axis.plot([1.08], [place], **style, transform=axis.transAxes, clip_on=False)
        axis.text(1.1, place, name, transform=axis.transAxes, va="center", fontsize=10.5)


def _apart(wanted: Sequence[float]) -> list[float]:
    """Rising places as near to the wanted ones as they can be without one label on another: groups
    that would overlap are merged and spread around the middle of what they wanted."""
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _spread(groups[-2])[-1] + _LINE_HEIGHT > _spread(groups[-1])[0]:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _spread(group)]


def _spread(group: Sequence[float]) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + _LINE_HEIGHT * (number - (len(group) - 1) / 2) for number in range(len(group))]
