"""How many bits each layer gets, so that a budget of bytes or of quality is met. Pure.

Which bit widths to mix is a knapsack problem. Shoham and Gersho ("Efficient bit allocation for an
arbitrary set of quantizers", IEEE Transactions on Acoustics, Speech, and Signal Processing 36(9),
1988) walk the lower convex hull of each layer's (bytes, damage) points: starting from the best
quality, always take the step that costs the least damage per byte saved. Every plan on the walk is
the best one of its size, and between two of them the walk misses the optimum by at most the
damage of one step. The walk does not depend on the budget, only where it stops does, so that a
larger budget never yields a worse plan.

Damages are added up, as if layers did not influence each other (HAWQ-V3, arXiv 2011.10680,
section 3.3, assumes the same); so the sum is a guide, and the plan's own quality must be measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Option:
    """What one layer costs at one bit width."""

    size_bytes: int  # integers, scales and zero points
    damage: float  # mean KL divergence when only this layer is rounded, nats


@dataclass(frozen=True, slots=True)
class MixedPlan:
    """A choice for every layer and what it sums up to."""

    bits: Mapping[str, int]
    size_bytes: int
    damage: float


def plan_mixed(
    options: Mapping[str, Mapping[int, Option]], max_bytes: int | None, max_damage: float | None
) -> MixedPlan:
    """The least damage within `max_bytes`, or the fewest bytes within `max_damage`, as far as the
    walk finds it.

    Args:
        options: layer to bit width to cost; 16 bits may be among them, with damage 0.
        max_bytes, max_damage: the budget of all layers together; exactly one is given.

    Raises:
        ValueError: not exactly one budget, a layer without options, a cost that is negative or
            not finite, or a budget that no choice of bits meets.
    """
    if (max_bytes is None) == (max_damage is None):
        raise ValueError(
            f"max_bytes, max_damage: got {max_bytes} and {max_damage}; expected exactly one"
        )
    _check(options)
    plans = list(_walk(options))
    if max_bytes is not None:
        for plan in plans:  # ever smaller
            if plan.size_bytes <= max_bytes:
                return plan
        raise ValueError(
            f"max_bytes: got {max_bytes}; expected at least {plans[-1].size_bytes}, which every "
            "layer at its smallest width takes"
        )
    for plan in reversed(plans):  # ever less harmful
        if max_damage is not None and plan.damage <= max_damage:
            return plan
    raise ValueError(
        f"max_damage: got {max_damage} nats; expected at least {plans[0].damage:g}, which every "
        "layer at its least harmful width adds up to"
    )


def _check(options: Mapping[str, Mapping[int, Option]]) -> None:
    for name, widths in options.items():
        if not widths:
            raise ValueError(f"options: {name} has none; expected at least one bit width")
        for bits, option in widths.items():
            if option.size_bytes < 0 or not 0 <= option.damage < math.inf:
                raise ValueError(
                    f"options: {name} at {bits} bits: got {option.size_bytes} bytes and damage "
                    f"{option.damage}; expected neither negative, both finite"
                )


def _walk(options: Mapping[str, Mapping[int, Option]]) -> Iterator[MixedPlan]:
    """Plans from the least damage to the fewest bytes, one layer's step apart."""
    hulls = {name: _hull(widths) for name, widths in options.items()}
    steps = sorted(
        (
            (Fraction(after.damage) - Fraction(before.damage))
            / (before.size_bytes - after.size_bytes),
            order,
            index,
            name,
        )
        for order, (name, hull) in enumerate(hulls.items())
        for index, ((_, before), (_, after)) in enumerate(pairwise(hull))
    )
    chosen = dict.fromkeys(hulls, 0)

    def plan() -> MixedPlan:
        points = {name: hulls[name][position] for name, position in chosen.items()}
        return MixedPlan(
            bits={name: bits for name, (bits, _) in points.items()},
            size_bytes=sum(option.size_bytes for _, option in points.values()),
            damage=math.fsum(option.damage for _, option in points.values()),
        )

    yield plan()
    for _, _, index, name in steps:
        chosen[name] = index + 1
        yield plan()


def _hull(widths: Mapping[int, Option]) -> list[tuple[int, Option]]:
    """The options on the lower convex hull, from the least damage to the fewest bytes: bytes fall
    strictly, damage rises strictly, and each step costs more per byte than the one before.
    (Exactly so, in fractions: were it off by a rounding, a layer's steps could change places.)"""
    # Of equal damage the smallest, of equal both the most bits: the rest is never worth it.
    points = sorted(widths.items(), key=lambda p: (p[1].damage, p[1].size_bytes, -p[0]))
    hull: list[tuple[int, Option]] = []
    for bits, option in points:
        if hull and option.size_bytes >= hull[-1][1].size_bytes:
            continue  # no smaller than what does less damage
        while len(hull) >= 2 and _above(hull[-2][1], hull[-1][1], option):
            hull.pop()
        hull.append((bits, option))
    return hull


def _above(first: Option, middle: Option, last: Option) -> bool:
    """Whether `middle` is not below the line from `first` to `last`."""
    to_middle = Fraction(middle.damage) - Fraction(first.damage)
    to_last = Fraction(last.damage) - Fraction(first.damage)
    return to_middle * (first.size_bytes - last.size_bytes) >= to_last * (
        first.size_bytes - middle.size_bytes
    )
