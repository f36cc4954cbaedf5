"""The tuner's decisions, on made measurements: exact results, no vectors, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.index.tuning.halving import Halving, Unsuited, search
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, Point
from capibench.index.tuning.preference import Limits, Preference, decide, front_of
from capibench.index.tuning.walk import walk

HALVING = Halving(
    min_sample=1000,
    keep_one_in=2,
    num_refinements=2,
    num_finalists=4,
    num_rounds=5,
    num_verifications=2,
)
SPEED = {"recall": 0.0, "latency": 1.0, "memory": 0.0, "build": 0.0}
MEMORY = {"recall": 0.0, "latency": 0.1, "memory": 1.0, "build": 0.0}


def recalls(mean: float, n: int = 2000) -> RecallSample:
    """A share of the queries found everything, the others nothing."""
    per_query = np.zeros(n)
    per_query[: round(mean * n)] = 1.0
    return RecallSample(per_query, 10)


def point(
    name: str = "a",
    *,
    recall: float = 0.99,
    seconds: Sequence[float] = (1e-3,) * 5,
    memory: int = 1000,
    build_s: float = 1.0,
    exact: bool = False,
    query: Mapping[str, int] | None = None,
) -> Point:
    return Point(
        Arm(name, name.split()[0], ()), query or {}, 10_000, exact, recalls(recall),
        np.array(seconds), memory, build_s,
    )  # fmt: skip


def preference(
    weights: Mapping[str, float] = SPEED, min_recall: float = 0.95, **limits: Any
) -> Preference:
    values = {"max_latency_s": None, "max_memory_bytes": None, "max_build_s": None, **limits}
    return Preference(Limits(min_recall, 0.95, **values), weights)


# Deciding


def test_the_best_score_among_those_that_keep_the_limits() -> None:
    quick_but_wrong = point("wrong", recall=0.9, seconds=[1e-5] * 5)
    quick, slow = point("quick", seconds=[1e-4] * 5), point("slow", seconds=[1e-3] * 5)
    verdict = decide([slow, quick_but_wrong, quick], preference())
    assert verdict.chosen is quick
    assert verdict.met
    assert verdict.ties == ()
    assert "quick: recall 0.9900" in verdict.reasons[0]


def test_a_mean_at_the_target_is_not_enough() -> None:
    lucky, sure = point("lucky", recall=0.95, seconds=[1e-5] * 5), point("sure", recall=0.97)
    assert decide([lucky, sure], preference()).chosen is sure


@pytest.mark.parametrize(
    ("limit", "value"), [("max_latency_s", 5e-4), ("max_memory_bytes", 500), ("max_build_s", 0.5)]
)
def test_each_budget_excludes(limit: str, value: float) -> None:
    over = point("over", seconds=[6e-4] * 5, memory=600, build_s=0.6)
    within = point("within", seconds=[4e-4] * 5, memory=400, build_s=0.4)
    weights = {"recall": 1.0, "latency": 0.0, "memory": 0.0, "build": 0.0}
    chosen = decide([over, within], preference(weights, **{limit: value}))
    assert (chosen.chosen, chosen.met) == (within, True)
    alone = decide([over], preference(weights, **{limit: value}))
    assert not alone.met
    assert "by a factor of 1.2" in alone.reasons[1]


def test_nothing_keeps_the_limits() -> None:
    near, far = point("near", recall=0.94), point("far", recall=0.5, seconds=[1e-6] * 5)
    verdict = decide([far, near], preference())
    assert (verdict.chosen, verdict.met, verdict.ties) == (near, False, ())
    assert "nothing that was measured keeps every limit" in verdict.reasons[1]


def test_a_tie_goes_to_the_smaller_and_is_shown() -> None:
    noisy = [1.00e-4, 1.10e-4, 0.95e-4, 1.05e-4, 0.98e-4]
    large = point("large", seconds=[0.99 * s for s in noisy], memory=5000)
    small = point("small", seconds=[noisy[i] for i in (1, 0, 3, 2, 4)], memory=1000)
    verdict = decide([large, small], preference())
    assert verdict.chosen is small
    assert verdict.ties == (large,)
    assert "takes 5 times the memory" in verdict.reasons[2]


def test_rounds_side_by_side_tell_apart_what_drift_would_hide() -> None:
    drift = np.array([1.0, 1.5, 2.0, 1.2, 0.9]) * 1e-4
    quick, slow = point("quick", seconds=0.97 * drift, memory=5000), point("slow", seconds=drift)
    verdict = decide([slow, quick], preference())
    assert (verdict.chosen, verdict.ties) == (quick, ())


def test_exact_search_has_recall_1_whatever_its_sample() -> None:
    exact = point("flat", recall=0.0, exact=True)
    assert decide([exact], preference(min_recall=1.0)).met


def test_no_points_is_an_error() -> None:
    with pytest.raises(ValueError, match="points: got none"):
        decide([], preference())


@given(
    st.lists(
        st.tuples(st.floats(0.5, 1.0), st.floats(1e-5, 1e-2), st.integers(1, 10**6)),
        min_size=1,
        max_size=12,
    )
)
def test_front_is_what_nobody_beats(values: list[tuple[float, float, int]]) -> None:
    points = [
        point(str(i), recall=r, seconds=[s] * 2, memory=m) for i, (r, s, m) in enumerate(values)
    ]
    front = front_of(points)
    figures = {id(p): (-p.recall.mean, p.latency_s, p.memory_bytes) for p in points}

    def beaten(p: Point) -> bool:
        own = figures[id(p)]
        return any(
            all(a <= b for a, b in zip(other, own, strict=True)) and other != own
            for other in figures.values()
        )

    assert [p.name for p in front] == [p.name for p in points if not beaten(p)]


# Walking the settings


@dataclass
class Grid:
    """Recall and time rise with both parameters."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def measure(self, setting: Mapping[str, int]) -> Point:
        values = tuple(setting.values())
        self.asked.append(values)
        effort = np.prod([1 - 0.5**v if v < 60 else 1.0 for v in values])
        return point(recall=float(effort), seconds=[1e-5 * sum(values)], query=dict(setting))


def test_walk_finds_the_cheapest_setting_of_a_level() -> None:
    grid = Grid()
    ladders = {"p": (1, 2, 4, 8, 16, 32), "s": (1, 2, 4, 8, 16)}
    found = walk(ladders, grid.measure, [0.9], 0.95, 0)
    assert len(grid.asked) == len(set(grid.asked)) <= 11  # as long as both ladders together
    enough = [p for p in found if p.recall_bound(0.95) >= 0.9]
    every = [Grid().measure({"p": p, "s": s}) for p in ladders["p"] for s in ladders["s"]]
    cheapest = min(p.latency_s for p in every if p.recall_bound(0.95) >= 0.9)
    assert min(p.latency_s for p in enough) == cheapest


def test_walk_refines_between_two_rungs() -> None:
    grid = Grid()
    found = walk({"p": (1, 16, 32)}, grid.measure, [0.9], 0.95, 3)
    settings = [p.query["p"] for p in found]
    assert settings[:2] == [1, 16]
    best = min((p for p in found if p.recall_bound(0.95) >= 0.9), key=lambda p: p.latency_s)
    assert 4 <= best.query["p"] <= 5  # 1 - 0.5 ** 4 is 0.94, 1 - 0.5 ** 3 is 0.88
    assert len(settings) <= 5


def test_walk_ends_with_the_time() -> None:
    grid, left = Grid(), iter([True, True, False])
    found = walk(
        {"p": (1, 2, 4, 8)}, lambda s: grid.measure(s) if next(left) else None, [0.99], 0.95, 2
    )
    assert [p.query["p"] for p in found] == [1, 2]


def test_walk_of_exact_search_measures_once() -> None:
    assert len(walk({}, lambda _: point(exact=True), [0.9, 0.99], 0.95, 2)) == 1


def test_walk_takes_two_parameters_at_most() -> None:
    with pytest.raises(ValueError, match="ladders: got a, b, c"):
        walk({"a": (1,), "b": (1,), "c": (1,)}, lambda _: None, [0.9], 0.95, 0)


# The race


@dataclass
class Model:
    """How a made structure behaves."""

    build_s: Callable[[int], float]
    latency_s: Callable[[int, int], float]  # of effort and number of vectors
    recall: Callable[[int], float]  # of effort
    memory: int
    verified: float | None = None  # recall on the second split; None: as on the first
    unsuited: bool = False
    exact: bool = False


@dataclass
class Trial:
    lab: Bench
    arm: Arm
    size: int
    closed: bool = False

    @property
    def model(self) -> Model:
        return self.lab.models[self.arm.name]

    @property
    def build_s(self) -> float:
        return self.model.build_s(self.size)

    @property
    def ladders(self) -> Mapping[str, Sequence[int]]:
        return {} if self.model.exact else {"effort": (1, 2, 4, 8, 16, 32, 64)}

    def measure(self, query: Mapping[str, int]) -> Point:
        assert not self.closed
        effort = query.get("effort", 0)
        seconds = self.model.latency_s(effort, self.size)
        self.lab.now_s += 100 * seconds
        return Point(
            self.arm, dict(query), self.size, self.model.exact, recalls(self.model.recall(effort)),
            np.array([seconds]), self.model.memory, self.build_s,
        )  # fmt: skip

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class Bench:
    """A laboratory whose clock moves as its models say."""

    models: Mapping[str, Model]
    limit_s: float = 1e9
    num_queries: int = 2000
    now_s: float = 0.0
    trials: list[Trial] = field(default_factory=list)

    def build(self, arm: Arm, num_vectors: int) -> Trial:
        if self.models[arm.name].unsuited:
            raise Unsuited("nlist: got 9; expected fewer")
        trial = Trial(self, arm, num_vectors)
        self.now_s += trial.build_s
        self.trials.append(trial)
        return trial

    def time_together(self, pairs: Any, num_rounds: int) -> list[Point]:
        assert not any(trial.closed for trial, _ in pairs)
        return [p.timed(np.repeat(p.seconds, num_rounds)) for _, p in pairs]

    def verify(self, trial: Trial, point: Point) -> RecallSample:
        assert not trial.closed
        recall = self.models[point.arm.name].verified
        return point.recall if recall is None else recalls(recall)

    def seconds_left(self) -> float:
        return self.limit_s - self.now_s


def scan(scale: float = 1e-7, **changes: Any) -> Model:
    values = {
        "build_s": lambda _: 0.01, "latency_s": lambda _, n: scale * n, "recall": lambda _: 1.0,
        "memory": 40_000_000, "exact": True,
    }  # fmt: skip
    return Model(**{**values, **changes})


def lists(scale: float = 1e-6, **changes: Any) -> Model:
    values = {
        "build_s": lambda n: 1e-5 * n,
        "latency_s": lambda e, n: scale * e * np.sqrt(n),
        "recall": lambda e: 1 - 0.5 / (1 + e * e),
        "memory": 2_000_000,
    }
    return Model(**{**values, **changes})


def run(
    models: Mapping[str, Model], wanted: Preference | None = None, **bench: Any
) -> tuple[Any, Bench]:
    lab = Bench(models, **bench)
    arms = [Arm(name, name.split()[0], ()) for name in models]
    told: list[str] = []
    found = search(arms, 8000, lab, wanted or preference(), HALVING, told.append)
    assert told
    assert all(trial.closed for trial in lab.trials)  # nothing is left in memory
    return found, lab


def test_race_chooses_the_quickest_that_keeps_its_recall() -> None:
    found, _ = run({"flat": scan(), "ivf a": lists(), "ivf b": lists(scale=5e-7)})
    assert found.verdict.chosen.arm.name == "ivf b"
    assert found.verdict.met
    assert found.verified is not None
    assert {p.num_vectors for p in found.points} == {8000}
    assert {p.num_vectors for p in found.sample_points} == {1000, 2000, 4000}
    assert "on the second split" in " ".join(found.verdict.reasons)


def test_race_halves_within_a_family_and_keeps_one_of_each() -> None:
    found, lab = run(
        {
            "flat": scan(),
            "ivf a": lists(4e-6), "ivf b": lists(3e-6), "ivf c": lists(2e-6), "ivf d": lists(1e-6),
            "slow": lists(1e-2),
        }
    )  # fmt: skip
    built = {t.arm.name for t in lab.trials if t.size == 8000}
    assert built == {"flat", "ivf d", "slow"}
    assert {left.arm for left in found.left_out} == {"ivf a", "ivf b", "ivf c"}
    assert all("did better" in left.reason for left in found.left_out)


def test_race_leaves_out_what_would_take_too_long_and_says_so() -> None:
    slow = lists(1e-9, build_s=lambda n: 1e-3 * n)
    found, lab = run({"flat": scan(), "ivf": lists(), "graph": slow}, limit_s=12.0)
    assert found.verdict.chosen.arm.name == "ivf"
    assert max(t.size for t in lab.trials if t.arm.name == "graph") < 8000
    (left,) = [left for left in found.left_out if left.arm == "graph" and left.num_vectors == 8000]
    assert "it would take about" in left.reason
    assert lab.now_s <= 12.0


def test_race_keeps_half_of_the_time_for_all_vectors() -> None:
    """Samples that take too long do not keep the best of them from being built."""
    slow = {f"ivf {letter}": lists(9e-5) for letter in "abcdefgh"}  # 2 s each on 1,000 vectors
    _, lab = run({"flat": scan(), **slow}, limit_s=20.0)
    assert {t.size for t in lab.trials if t.arm.name == "ivf a"} == {1000, 8000}
    assert {t.size for t in lab.trials if t.arm.name == "ivf h"} == set()


def test_race_builds_first_what_did_best_on_a_sample() -> None:
    models = {"flat": scan(), "a": lists(9e-6), "b": lists(2e-6), "c": lists(5e-6)}
    _, lab = run(models)
    assert [t.arm.name for t in lab.trials if t.size == 8000] == ["flat", "b", "c", "a"]


def test_race_always_has_an_answer() -> None:
    found, _ = run({"flat": scan(), "ivf": lists()}, limit_s=0.0)
    assert found.verdict.chosen.arm.name == "flat"
    assert [left.arm for left in found.left_out] == ["ivf"]


def test_race_passes_over_a_pick_that_was_lucky() -> None:
    found, _ = run({"flat": scan(), "slower": lists(), "quicker": lists(5e-7, verified=0.9)})
    assert found.verdict.chosen.arm.name == "slower"
    assert "quicker effort=4 was passed over" in " ".join(found.verdict.reasons)


def test_race_falls_back_to_exact_search() -> None:
    found, _ = run({"flat": scan(), "ivf": lists(verified=0.9)})
    assert (found.verdict.chosen.arm.name, found.verdict.met) == ("flat", True)
    assert found.verified is None


def test_race_admits_that_nothing_held() -> None:
    found, _ = run({"ivf": lists(verified=0.9)})
    assert not found.verdict.met
    assert found.verified is not None
    assert found.verified.mean == pytest.approx(0.9)
    assert "nothing kept its recall on the second split" in found.verdict.reasons


def test_race_goes_on_without_what_does_not_fit() -> None:
    found, _ = run({"flat": scan(), "ivf": lists(unsuited=True)})
    assert found.verdict.chosen.arm.name == "flat"
    assert found.left_out[0].reason == "nlist: got 9; expected fewer"
    with pytest.raises(ValueError, match="none could be built"):
        run({"ivf": lists(unsuited=True)})


def test_too_few_queries_prove_nothing() -> None:
    found, _ = run({"flat": scan(), "ivf": lists()}, num_queries=20)
    assert found.verdict.chosen.arm.name == "flat"
    assert "20 queries cannot show a recall of 0.95" in found.left_out[-1].reason


def test_memory_and_speed_choose_differently() -> None:
    models = {
        "flat": scan(),
        "small": lists(2e-6, memory=100_000),
        "large": lists(5e-7, memory=9_000_000),
    }
    assert run(models)[0].verdict.chosen.arm.name == "large"
    assert run(models, preference(MEMORY))[0].verdict.chosen.arm.name == "small"


@pytest.mark.parametrize("arms", [[], [Arm("a", "a", ()), Arm("a", "b", ())]])
def test_arms_are_named_once(arms: list[Arm]) -> None:
    with pytest.raises(ValueError, match="arms: got"):
        search(arms, 10, Bench({}), preference(), HALVING, lambda _: None)


@given(st.integers(1, 10**7))
def test_sizes_grow_to_all(n: int) -> None:
    sizes = HALVING.sizes(n)
    assert sizes[-1] == n
    assert list(sizes) == sorted(set(sizes))
    assert all(size >= HALVING.min_sample for size in sizes[:-1])


def test_builds_under_a_second_weigh_alike() -> None:
    weights = {"recall": 0.0, "latency": 0.0, "memory": 0.0, "build": 1.0}
    scored = [preference(weights).score(point(build_s=s)) for s in (1e-5, 0.5, 1.0, 2.0)]
    assert scored[:3] == [0.0, 0.0, 0.0]
    assert scored[3] > 0
