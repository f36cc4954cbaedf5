"""What a strategy wants, as limits and weights over measured figures; and what follows from them.

A score is the weighted sum of logarithms: what a candidate scores does not depend on who else was
tried, as it would after scaling each figure to its best and worst. Recall weighs 10 where one per
cent of it is worth ten per cent of latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Point
from capibench.measure.stats import pareto_front

GOODS = ("recall", "latency", "memory", "build")
_LEAST = 1e-9  # in place of a zero, whose logarithm there is not
_LEAST_BUILD_S = 1.0  # a shorter build counts as one of a second: nobody waits for either


@dataclass(frozen=True, slots=True)
class Limits:
    """What a choice must keep; None: no limit."""

    min_recall: float  # of the lower bound of mean recall@k
    confidence: float  # of that one-sided bound
    max_latency_s: float | None  # mean per query, in the serving mode
    max_memory_bytes: int | None
    max_build_s: float | None

    def broken(self, point: Point) -> dict[str, float]:
        """Each limit that the point breaks → by what factor."""
        bound = point.recall_bound(self.confidence)
        found = {"recall": max(self.min_recall, _LEAST) / max(bound, _LEAST)}
        for name, value, limit in (
            ("latency", point.latency_s, self.max_latency_s),
            ("memory", float(point.memory_bytes), self.max_memory_bytes),
            ("build", point.build_s, self.max_build_s),
        ):
            if limit is not None:
                found[name] = value / max(limit, _LEAST)
        return {name: factor for name, factor in found.items() if factor > 1}

    def reachable(self, num_queries: int) -> float:
        """The greatest bound that so many queries can give: that of a sample without a miss."""
        return RecallSample(np.ones(num_queries), 1).lower_bound(self.confidence)


@dataclass(frozen=True, slots=True)
class Preference:
    """Limits first; among those who keep them, the lowest score."""

    limits: Limits
    weights: Mapping[str, float]  # of GOODS

    def score(self, point: Point) -> float:
        """Lower is better; a difference of 0.1 is about ten per cent of latency at weight 1."""
        return (
            self.weights["latency"] * _log(point.latency_s)
            + self.weights["memory"] * _log(point.memory_bytes)
            + self.weights["build"] * _log(max(point.build_s, _LEAST_BUILD_S))
            - self.weights["recall"] * _log(1.0 if point.exact else point.recall.mean)
        )

    def order(self, point: Point) -> tuple[float, float]:
        """Sorts points: whoever keeps the limits by score, then the others by how far they are off
        (a recall that is missing counts ten times)."""
        broken = self.limits.broken(point)
        off = sum(_log(f) * (10.0 if name == "recall" else 1.0) for name, f in broken.items())
        return off, self.score(point)

    def told_apart(self, one: Point, other: Point) -> bool:
        """Whether the score of the two differs by more than the noise of measuring.

        Paired: the same queries answered by both, and rounds timed side by side. Two-sided, 95 %,
        Student's t with the degrees of freedom of the rounds. Bytes are counted, and a build
        happens once: neither has a spread.
        """
        rounds = min(len(one.seconds), len(other.seconds))
        if rounds < 2:
            return self.score(one) != self.score(other)
        ratios = np.log(one.seconds[:rounds]) - np.log(other.seconds[:rounds])
        variance = self.weights["latency"] ** 2 * float(ratios.var(ddof=1)) / rounds
        difference = (
            self.weights["latency"] * float(ratios.mean())
            + self.weights["memory"] * (_log(one.memory_bytes) - _log(other.memory_bytes))
            + self.weights["build"]
            * (_log(max(one.build_s, _LEAST_BUILD_S)) - _log(max(other.build_s, _LEAST_BUILD_S)))
        )
        if self.weights["recall"]:
            found = [
                np.ones_like(p.recall.per_query) if p.exact else p.recall.per_query
                for p in (one, other)
            ]
            deltas = found[0] - found[1]
            scale = self.weights["recall"] / max((found[0].mean() + found[1].mean()) / 2, _LEAST)
            difference -= scale * float(deltas.mean())
            if len(deltas) > 1:
                variance += scale**2 * float(deltas.var(ddof=1)) / len(deltas)
        return abs(difference) > float(scipy_stats.t.ppf(0.975, rounds - 1)) * math.sqrt(variance)

    def recall_levels(self, num_queries: int) -> tuple[float, ...]:
        """Bounds at which the cheapest setting is worth knowing: the least allowed, and where
        recall has a weight some beyond. None that so few queries could not show."""
        missed = 1 - self.limits.min_recall
        levels = [1 - missed]
        if self.weights["recall"]:
            levels += [1 - missed / 2, 1 - missed / 5]
        most = self.limits.reachable(num_queries)
        return tuple(level for level in levels if level <= most)


@dataclass(frozen=True)
class Verdict:
    """Which point, how sure that is, and why."""

    chosen: Point
    met: bool  # False: no point keeps all limits, and this one is nearest
    ties: tuple[Point, ...]  # not told apart from the best score; the chosen one not among them
    front: tuple[Point, ...]  # no other is as good in recall, latency and memory, and better in one
    reasons: tuple[str, ...]


def decide(points: Sequence[Point], preference: Preference) -> Verdict:
    """The best point. Of those that cannot be told from the best the one with the fewest bytes is
    taken, then the one that stands first.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("points: got none; expected at least 1")
    order = sorted(points, key=preference.order)
    best = order[0]
    met = not preference.limits.broken(best)
    rivals = [p for p in order[1:] if not preference.limits.broken(p)] if met else []
    ties = [p for p in rivals if not preference.told_apart(best, p)]
    chosen = min([best, *ties], key=lambda p: p.memory_bytes)
    others = tuple(p for p in (best, *ties) if p is not chosen)
    return Verdict(
        chosen, met, others, front_of(points), _reasons(chosen, best, met, others, preference)
    )


def front_of(points: Sequence[Point]) -> tuple[Point, ...]:
    """The Pareto front over recall, latency and memory."""
    values = [(1.0 if p.exact else p.recall.mean, p.latency_s, p.memory_bytes) for p in points]
    kept = pareto_front(values, ("higher", "lower", "lower"))
    return tuple(p for p, on_front in zip(points, kept, strict=True) if on_front)


def described(point: Point, confidence: float) -> str:
    """The point's figures in words."""
    if point.exact:
        recall = "recall 1 by construction"
    else:
        bound = point.recall.lower_bound(confidence)
        recall = f"recall {point.recall.mean:.4f} (at least {bound:.4f})"
    return (
        f"{recall}, {point.latency_s * 1e3:.4g} ms per query, "
        f"{point.memory_bytes / 1e6:.4g} MB in memory, built in {point.build_s:.3g} s"
    )


def _reasons(
    chosen: Point, best: Point, met: bool, others: Sequence[Point], preference: Preference
) -> tuple[str, ...]:
    limits = preference.limits
    weights = ", ".join(f"{n} {w:g}" for n, w in preference.weights.items() if w)
    reasons = [f"{chosen.name}: {described(chosen, limits.confidence)}"]
    if met:
        reasons.append(f"it keeps every limit and has the best score (weights: {weights})")
    else:
        broken = ", ".join(f"{n} by a factor of {f:.3g}" for n, f in limits.broken(chosen).items())
        reasons.append(f"nothing that was measured keeps every limit; this breaks {broken}")
    if chosen is not best:
        reasons.append(
            f"{best.name} scores no better beyond the noise of measuring and takes "
            f"{best.memory_bytes / max(chosen.memory_bytes, 1):.3g} times the memory"
        )
    tied = [p.name for p in others if p is not best]
    if tied:
        reasons.append(f"not told apart from it: {', '.join(tied)}")
    return tuple(reasons)


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))
