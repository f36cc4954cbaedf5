"""Successive halving: build many structures on few vectors, and few on all.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016, algorithm 1; the resource is the number of vectors. One thing differs: each family
keeps at least one arm to the end, because families grow differently with the number of vectors (a
scan linearly, a graph with its logarithm), so that what loses on a sample may win on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, LeftOut, Point
from capibench.index.tuning.preference import Preference, Verdict, decide, front_of
from capibench.index.tuning.walk import walk

# Where building would take longer than this share of the time left, it is not begun.
_SHARE_FOR_ONE_BUILD = 0.8
# Samples are given up to this share of the time, so that what did best on them is built on all.
_SHARE_FOR_SAMPLES = 0.5
# A structure of the last round that takes more than this share of its time waits for the others.
_SHARE_OF_A_SLOW_BUILD = 0.3
_MOST_ROUNDS = 10_000  # their times are held in memory
_UNKNOWN = (math.inf, math.inf)  # the standing of what no sample told about


class Unsuited(ValueError):
    """A structure cannot be built on these vectors; the message says why."""


class Trial(Protocol):
    """One structure, built, and kept until it is closed."""

    @property
    def build_s(self) -> float:
        """Seconds that building took."""

    @property
    def ladders(self) -> Mapping[str, Sequence[int]]:
        """Ascending values of each query parameter, the most influential first."""

    def measure(self, query: Mapping[str, int]) -> Point:
        """Recall on the tuning queries, and one round of latency."""

    def close(self) -> None:
        """Give its memory back."""


class Laboratory(Protocol):
    """Builds and measures. What stands here is all that the search knows of vectors and clocks."""

    num_queries: int  # of the tuning split

    def build(self, arm: Arm, num_vectors: int) -> Trial:
        """Build `arm` on the first `num_vectors` of a fixed random order; Unsuited if it cannot."""

    def time_together(self, pairs: Sequence[tuple[Trial, Point]], num_rounds: int) -> list[Point]:
        """The points with `num_rounds` rounds of latency, interleaved in an order drawn anew."""

    def verify(self, trial: Trial, point: Point) -> RecallSample:
        """Recall on the queries that nothing was chosen by."""

    def seconds_left(self) -> float:
        """Until the tuning has to be done."""


@dataclass(frozen=True, slots=True)
class Halving:
    """How the time is spent."""

    min_sample: int  # vectors of the smallest sample
    keep_one_in: int  # arms of a family that go on to so many times more vectors
    num_refinements: int  # settings tried between two rungs of a ladder
    num_finalists: int  # points that are timed side by side at the end
    num_rounds: int  # of that timing
    num_verifications: int  # picks that are tried on the second split of the queries

    def __post_init__(self) -> None:
        for name, least in (
            ("min_sample", 1),
            ("keep_one_in", 2),
            ("num_refinements", 0),
            ("num_finalists", 1),
            ("num_rounds", 2),
            ("num_verifications", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least {least}")
        if self.num_rounds > _MOST_ROUNDS:
            raise ValueError(f"num_rounds: got {self.num_rounds}; expected at most {_MOST_ROUNDS}")

    def sizes(self, num_vectors: int) -> tuple[int, ...]:
        """Ascending numbers of vectors; the last is all of them."""
        sizes = [num_vectors]
        while sizes[0] // self.keep_one_in >= self.min_sample:
            sizes.insert(0, sizes[0] // self.keep_one_in)
        return tuple(sizes)


@dataclass(frozen=True)
class Found:
    """The pick, and everything measured on the way."""

    verdict: Verdict
    verified: RecallSample | None  # of the pick, on the second split; None: exact by construction
    points: tuple[Point, ...]  # on all vectors
    sample_points: tuple[Point, ...]  # on fewer
    left_out: tuple[LeftOut, ...]


@dataclass
class _Race:
    """One search under way."""

    laboratory: Laboratory
    preference: Preference
    halving: Halving
    report: Callable[[str], None]
    num_vectors: int
    sample_points: list[Point]
    left_out: list[LeftOut]
    build_s: dict[Arm, tuple[int, float]]  # the last build of each arm: vectors, seconds
    standing: dict[Arm, tuple[float, float]]  # `Preference.order` of its best on the last sample
    reserved_s: float  # for structures on all vectors

    def expected_build_s(self, arm: Arm, num_vectors: int) -> float | None:
        """An estimate by n·ln n from the last build; None where there was none."""
        if arm not in self.build_s:
            return None
        size, seconds = self.build_s[arm]
        return seconds * num_vectors * math.log(num_vectors + 1) / (size * math.log(size + 1))

    def left_s(self, num_vectors: int) -> float:
        """Seconds that may still be spent on structures of so many vectors."""
        left_s = self.laboratory.seconds_left()
        return left_s if num_vectors == self.num_vectors else left_s - self.reserved_s

    def tried(
        self, arm: Arm, size: int, refine: int, must: bool = False
    ) -> tuple[Trial, list[Point]] | None:
        """Build an arm and walk its settings; None, with the reason noted, where that cannot be.
        `must`: whatever the time."""
        expected_s, left_s = self.expected_build_s(arm, size), self.left_s(size)
        late = left_s <= 0 or (expected_s or 0) > _SHARE_FOR_ONE_BUILD * left_s
        if late and not must:
            if size < self.num_vectors:
                return None
            estimate = "" if expected_s is None else f"; it would take about {expected_s:.3g} s"
            self.leave_out(arm, size, f"{max(left_s, 0):.3g} s were left to build it{estimate}")
            return None
        limit = self.preference.limits.max_build_s
        if limit is not None and expected_s is not None and expected_s > limit and not must:
            self.leave_out(arm, size, f"it would take about {expected_s:.3g} s to build")
            return None
        self.report(f"{arm.name} on {size} vectors")
        try:
            trial = self.laboratory.build(arm, size)
        except Unsuited as error:  # it may suit more vectors
            if size == self.num_vectors:
                self.leave_out(arm, size, str(error))
            return None
        self.build_s[arm] = size, trial.build_s

        def measure(setting: dict[str, int]) -> Point | None:
            late = self.left_s(size) <= 0
            return None if late and not must else trial.measure(setting)

        limits = self.preference.limits
        levels = self.preference.recall_levels(self.laboratory.num_queries)
        points = walk(
            trial.ladders, measure, levels or (limits.min_recall,), limits.confidence, refine
        )
        if not points:
            trial.close()
            self.leave_out(arm, size, "no time was left to measure it")
            return None
        return trial, points

    def leave_out(self, arm: Arm, size: int, reason: str) -> None:
        self.left_out.append(LeftOut(arm.name, size, reason))


def search(
    arms: Sequence[Arm],
    num_vectors: int,
    laboratory: Laboratory,
    preference: Preference,
    halving: Halving,
    report: Callable[[str], None],
) -> Found:
    """The best structure and setting that the time allows to find.

    Args:
        arms: the simplest first, each name once. The first is always measured, whatever the time.
        num_vectors: all of them.
        laboratory: builds and measures.
        preference: limits and weights.
        halving: how the time is spent.
        report: is told what is being done.

    Raises:
        ValueError: no arms, or none of them can be built.
    """
    if len({arm.name for arm in arms}) != len(arms) or not arms:
        raise ValueError(f"arms: got {[a.name for a in arms]}; expected each once, at least 1")
    reserved_s = (1 - _SHARE_FOR_SAMPLES) * laboratory.seconds_left()
    race = _Race(laboratory, preference, halving, report, num_vectors, [], [], {}, {}, reserved_s)
    survivors = _provable(race, list(arms))
    *samples, full = halving.sizes(num_vectors)
    for size in samples:
        survivors = _halved(race, survivors, size)
    alive, points = _measured(race, survivors, full)
    if not points:
        reasons = "; ".join(f"{left.arm}: {left.reason}" for left in race.left_out)
        raise ValueError(f"candidates: none could be built ({reasons})")
    try:
        return _finished(race, alive, points)
    finally:
        for trial in alive.values():
            trial.close()


def _provable(race: _Race, arms: list[Arm]) -> list[Arm]:
    """All arms; only the first where there are too few queries to show the recall of any other."""
    num_queries, limits = race.laboratory.num_queries, race.preference.limits
    if race.preference.recall_levels(num_queries):
        return arms
    for arm in arms[1:]:
        race.leave_out(
            arm,
            race.num_vectors,
            f"{num_queries} queries cannot show a recall of {limits.min_recall:g}: without a miss "
            f"the bound is {limits.reachable(num_queries):.4f}",
        )
    return arms[:1]


def _halved(race: _Race, arms: list[Arm], size: int) -> list[Arm]:
    """The arms that go on; an arm that there was no time for goes on untried."""
    best: dict[Arm, Point] = {}
    untried = []
    for arm in arms:
        if race.left_s(size) <= 0:
            untried.append(arm)
            continue
        result = race.tried(arm, size, refine=0)
        if result is None:
            untried.append(arm)
            continue
        trial, points = result
        trial.close()
        race.sample_points += points
        best[arm] = min(points, key=race.preference.order)
        race.standing[arm] = race.preference.order(best[arm])
    kept = set(untried)
    for family in dict.fromkeys(arm.family for arm in arms):
        own = sorted(
            (arm for arm in best if arm.family == family),
            key=lambda arm: race.preference.order(best[arm]),
        )
        num_kept = math.ceil(len(own) / race.halving.keep_one_in)
        kept |= set(own[:num_kept])
        for arm in own[num_kept:]:
            race.leave_out(arm, size, f"{own[0].name} did better on {size} vectors")
    return [arm for arm in arms if arm in kept]


def _measured(race: _Race, arms: list[Arm], size: int) -> tuple[dict[str, Trial], list[Point]]:
    """Every arm on all vectors, those that did best on a sample first; but what is slow to build
    comes last, so that it cannot take the time of all others. Only structures that can still win
    are kept in memory."""
    alive: dict[str, Trial] = {}
    points: list[Point] = []
    slow_s = _SHARE_OF_A_SLOW_BUILD * race.laboratory.seconds_left()

    def promise(arm: Arm) -> tuple[float, tuple[float, float]]:
        build_s = race.expected_build_s(arm, size) or 0.0
        return (build_s if build_s > slow_s else 0.0), race.standing.get(arm, _UNKNOWN)

    for arm in (*arms[:1], *sorted(arms[1:], key=promise)):
        result = race.tried(arm, size, race.halving.num_refinements, must=not points)
        if result is None:
            continue
        alive[arm.name], own = result
        points += own
        ranked = sorted(points, key=race.preference.order)
        wanted = {p.arm.name for p in ranked[: race.halving.num_finalists]}
        for name in alive.keys() - wanted:
            alive.pop(name).close()
    return alive, points


def _finished(race: _Race, alive: Mapping[str, Trial], points: list[Point]) -> Found:
    """Time the best side by side, then pick the first that keeps its recall on other queries."""
    preference, halving = race.preference, race.halving
    ranked = sorted((p for p in points if p.arm.name in alive), key=preference.order)
    pairs = [(alive[p.arm.name], p) for p in ranked[: halving.num_finalists]]
    race.report("timing the best side by side")
    finalists = race.laboratory.time_together(pairs, halving.num_rounds)
    by_name = {p.name: p for p in finalists}
    points = [by_name.get(p.name, p) for p in points]

    race.report("verifying the pick on other queries")
    verdict, verified, passed_over = _verified(race, alive, finalists, points)
    reasons = list(verdict.reasons)
    if verified is not None:
        bound = verified.lower_bound(preference.limits.confidence)
        reasons.append(
            f"on the second split: recall {verified.mean:.4f} (at least {bound:.4f}, "
            f"{len(verified.per_query)} queries)"
        )
    verdict = replace(verdict, front=front_of(points), reasons=(*reasons, *passed_over))
    return Found(verdict, verified, tuple(points), tuple(race.sample_points), tuple(race.left_out))


def _verified(
    race: _Race, alive: Mapping[str, Trial], finalists: list[Point], points: list[Point]
) -> tuple[Verdict, RecallSample | None, list[str]]:
    """The verdict that holds on the second split, its recall there, and who was passed over."""
    limits = race.preference.limits
    passed_over: list[str] = []
    candidates = list(finalists)
    while candidates and len(passed_over) < race.halving.num_verifications:
        verdict = decide(candidates, race.preference)
        if passed_over and not verdict.met:
            break
        chosen = verdict.chosen
        if chosen.exact:
            return verdict, None, passed_over
        verified = race.laboratory.verify(alive[chosen.arm.name], chosen)
        bound = verified.lower_bound(limits.confidence)
        if not verdict.met or bound >= limits.min_recall:
            return verdict, verified, passed_over
        passed_over.append(
            f"{chosen.name} was passed over: on the second split its recall is at least {bound:.4f}"
        )
        candidates = [p for p in candidates if p is not chosen]
    exact = [p for p in points if p.exact and not limits.broken(p)]
    if exact:
        return decide(exact, race.preference), None, passed_over
    best = max(finalists, key=lambda p: p.recall_bound(limits.confidence))
    verified = race.laboratory.verify(alive[best.arm.name], best)
    verdict = replace(decide([best], race.preference), met=False)
    return verdict, verified, [*passed_over, "nothing kept its recall on the second split"]
