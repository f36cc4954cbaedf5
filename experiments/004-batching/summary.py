"""From cells to what is reported: means over repeats with intervals, and differences that are
differences. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as scipy_stats


@dataclass(frozen=True)
class Interval:
    """A mean over repeats and its 95 % interval (Student's t); None: too few repeats for one."""

    mean: float
    low: float | None
    high: float | None

    def __format__(self, spec: str) -> str:
        if self.low is None or self.high is None:
            return format(self.mean, spec)
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent `values`."""
    samples = np.asarray(values, dtype=np.float64)
    mean = float(samples.mean())
    if len(samples) < 3:
        return Interval(mean, None, None)
    spread = float(samples.std(ddof=1)) / math.sqrt(len(samples))
    margin = float(scipy_stats.t.ppf(0.975, len(samples) - 1)) * spread
    return Interval(mean, mean - margin, mean + margin)


def of_oracle(rows: Sequence[dict[str, Any]]) -> Interval:
    """Goodput over the oracle's upper bound: where it is not exact, the true share is higher."""
    return interval([row["good"] / row["oracle_upper_bound"] for row in rows])


def of_best_found(rows: Sequence[dict[str, Any]]) -> Interval:
    """Goodput over that of the best schedule known, or 1 where no better one is: where the oracle
    is not exact, the true share lies between `of_oracle` and this."""
    return interval([min(1.0, row["good"] / row["oracle_best_found"]) for row in rows])


def against(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> Interval:
    """Share of good requests less that of `base`, repeat by repeat (the same requests)."""
    theirs = {row["repeat"]: row["good"] for row in base}
    return interval([(row["good"] - theirs[row["repeat"]]) / row["offered"] for row in rows])


def is_tie(difference: Interval) -> bool | None:
    """Whether the interval contains 0; None: there is none."""
    if difference.low is None or difference.high is None:
        return None
    return difference.low <= 0.0 <= difference.high


Key = tuple[str, str, str, float, str]


def grouped(cells: Sequence[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Repeats by mix, machine, arrivals, load and strategy, in the order of the study."""
    groups: dict[Key, list[dict[str, Any]]] = {}
    for row in cells:
        key = (row["mix"], row["machine"], row["arrivals"], row["load"], row["strategy"])
        groups.setdefault(key, []).append(row)
    return groups


def values_of(cells: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Different values of a column, in order of appearance."""
    return list(dict.fromkeys(row[name] for row in cells))
