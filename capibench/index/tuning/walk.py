"""Which settings of the query parameters are worth measuring, once a structure is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from capibench.index.tuning.points import Point

Setting = dict[str, int]


def walk(
    ladders: Mapping[str, Sequence[int]],
    measure: Callable[[Setting], Point | None],
    levels: Sequence[float],
    confidence: float,
    num_refinements: int,
) -> list[Point]:
    """Measure along the border between too little recall and enough, of each level in turn.

    More of any query parameter costs time and (nearly always) buys recall. So the cheapest
    settings that reach a level form a staircase through the grid of two ladders, and one walk
    beside it meets them all in as many steps as the ladders are long together (the saddleback
    search of a matrix with sorted rows and columns). Between the last rung that missed a level and
    the first that reached it lies a factor of two; it is then halved `num_refinements` times.

    Args:
        ladders: one or two query parameters, the most influential first, each with ascending
            values; empty where search is exact.
        measure: measures a setting; None when there is no time left, which ends the walk.
        levels: lower bounds of recall, ascending.
        confidence: of those bounds.
        num_refinements: of the cheapest setting of each level.

    Returns:
        what was measured, each setting once, in that order.

    Raises:
        ValueError: more than two query parameters.
    """
    if len(ladders) > 2:
        raise ValueError(f"ladders: got {', '.join(ladders)}; expected at most two")
    measured: dict[tuple[int, ...], Point] = {}
    out_of_time = False

    def at(*values: int) -> Point | None:
        nonlocal out_of_time
        if values not in measured and not out_of_time:
            point = measure(dict(zip(ladders, values, strict=True)))
            if point is None:
                out_of_time = True
            else:
                measured[values] = point
        return measured.get(values)

    if not ladders:
        at()
        return list(measured.values())
    first, *rest = (tuple(ladder) for ladder in ladders.values())
    second = rest[0] if rest else None
    for level in levels:
        corners = _staircase(
            first, second, at, partial(_reaches, level=level, confidence=confidence)
        )
        if corners:
            before, values = min(corners, key=lambda corner: measured[corner[1]].latency_s)
            for _ in range(num_refinements):
                middle = math.isqrt(before * values[0])
                if not before < middle < values[0]:
                    break
                point = at(middle, *values[1:])
                if point is None:
                    break
                if _reaches(point, level, confidence):
                    values = (middle, *values[1:])
                else:
                    before = middle
    return list(measured.values())


def _reaches(point: Point, level: float, confidence: float) -> bool:
    return point.recall_bound(confidence) >= level


def _staircase(
    first: tuple[int, ...],
    second: tuple[int, ...] | None,
    at: Callable[..., Point | None],
    reaches: Callable[[Point], bool],
) -> list[tuple[int, tuple[int, ...]]]:
    """The cheapest settings that reach the level, each with the value of the first parameter below
    its own (0: there is none)."""
    corners: list[tuple[int, tuple[int, ...]]] = []
    i, j = 0, 0 if second is None else len(second) - 1
    while i < len(first) and j >= 0:
        values = (first[i],) if second is None else (first[i], second[j])
        point = at(*values)
        if point is None:
            break
        if reaches(point):
            corners.append((first[i - 1] if i else 0, values))
            j -= 1
        else:
            i += 1
    return corners
