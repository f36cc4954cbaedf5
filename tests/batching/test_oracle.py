"""The oracle against brute force, its certificates, and that no strategy ever passes its bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from choice_files import choices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capibench.batching.offline import PlannedBatch, agreeable, check_schedule
from capibench.batching.oracle import Oracle, oracle
from capibench.batching.service_table import ServiceTable
from capibench.batching.simulate import Offered, simulate

TEN_PLUS_TWO = ServiceTable.affine(0.010, 0.002, max_batch_size=32, num_steps=8)


def table(*seconds: float) -> ServiceTable:
    return ServiceTable((0.0,) * len(seconds), seconds, 1)


def ask(release: Sequence[float], due: Sequence[float], service: ServiceTable) -> Oracle:
    return oracle(np.asarray(release, float), np.asarray(due, float), service)


def brute_force(release: Sequence[float], due: Sequence[float], service: Sequence[float]) -> int:
    """Tries every order of every batch, with members that are late as well."""

    @cache
    def most(free: float, left: frozenset[int]) -> int:
        best = 0
        for size in range(1, min(len(left), len(service)) + 1):
            for batch in combinations(sorted(left), size):
                end = max(free, *(release[i] for i in batch)) + service[size - 1]
                good = sum(end <= due[i] for i in batch)
                best = max(best, good + most(end, left.difference(batch)))
        return best

    return most(0.0, frozenset(range(len(release))))


def brute_force_two_workers(
    release: Sequence[float],
    due: Sequence[float],
    service: Sequence[float],
    speeds: Sequence[float],
) -> int:
    @cache
    def most(free: tuple[float, ...], left: frozenset[int]) -> int:
        best = 0
        for size in range(1, min(len(left), len(service)) + 1):
            for batch in combinations(sorted(left), size):
                for worker, speed in enumerate(speeds):
                    start = max(free[worker], *(release[i] for i in batch))
                    end = start + service[size - 1] / speed
                    if all(end <= due[i] for i in batch):
                        after = (*free[:worker], end, *free[worker + 1 :])
                        best = max(best, size + most(after, left.difference(batch)))
        return best

    return most((0.0,) * len(speeds), frozenset(range(len(release))))


# Whole numbers: no rounding can decide whether an end is in time.
TIMES = st.integers(0, 12).map(float)
SPANS = st.integers(1, 9).map(float)
TABLES = st.lists(st.integers(1, 7).map(float), min_size=1, max_size=3)


@given(st.lists(TIMES, min_size=1, max_size=6), SPANS, TABLES)
@settings(max_examples=80)
def test_the_optimum_is_exact_when_all_have_the_same_objective(
    release: list[float], objective: float, seconds: list[float]
) -> None:
    due = [came + objective for came in release]
    found = ask(release, due, table(*sorted(seconds)))
    assert found.exact == brute_force(release, due, sorted(seconds))


@given(st.lists(st.tuples(TIMES, SPANS), min_size=1, max_size=6), TABLES)
@settings(max_examples=80)
def test_the_optimum_is_exact_when_deadlines_follow_arrivals(
    spans: list[tuple[float, float]], seconds: list[float]
) -> None:
    release = sorted(came for came, _ in spans)
    due = sorted(came + span for came, span in spans)
    assert agreeable(np.asarray(release), np.asarray(due))
    assert ask(release, due, table(*sorted(seconds))).exact == brute_force(
        release, due, sorted(seconds)
    )


@given(st.lists(st.tuples(TIMES, SPANS), min_size=1, max_size=5), TABLES)
@settings(max_examples=100)
def test_any_deadlines_and_any_table_lie_between_the_bounds(
    spans: list[tuple[float, float]], seconds: list[float]
) -> None:
    release = [came for came, _ in spans]
    due = [came + span for came, span in spans]
    found = ask(release, due, table(*seconds))
    assert found.best_found <= brute_force(release, due, seconds) <= found.upper_bound


@given(
    st.lists(st.tuples(TIMES, SPANS), min_size=1, max_size=4),
    TABLES,
    st.sampled_from([(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)]),
)
@settings(max_examples=60)
def test_several_workers_lie_between_the_bounds(
    spans: list[tuple[float, float]], seconds: list[float], speeds: tuple[float, ...]
) -> None:
    release = [came for came, _ in spans]
    due = [came + span for came, span in spans]
    found = oracle(np.asarray(release), np.asarray(due), table(*seconds), speeds)
    best = brute_force_two_workers(release, due, seconds, speeds)
    assert found.best_found <= best <= found.upper_bound


@given(
    st.lists(TIMES, min_size=1, max_size=4),
    SPANS,
    TABLES,
    st.sampled_from([(1.0, 1.0), (0.5, 1.0), (2.0, 1.0)]),
)
@settings(max_examples=60)
def test_a_second_worker_helps_and_no_more_than_it_can(
    release: list[float], objective: float, seconds: list[float], speeds: tuple[float, ...]
) -> None:
    due = [came + objective for came in release]
    arrivals, deadlines, service = np.asarray(release), np.asarray(due), table(*sorted(seconds))
    found = oracle(arrivals, deadlines, service, speeds)
    alone = oracle(arrivals, deadlines, service, (max(speeds),))
    best = brute_force_two_workers(release, due, sorted(seconds), speeds)
    assert alone.best_found <= found.best_found <= best
    assert (
        check_schedule(found.batches, arrivals, deadlines, service.batch_s, speeds)
        == found.best_found
    )


def test_the_known_schedule_of_three_workers_is_near_the_bound() -> None:
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 2500, 120))
    found = oracle(arrivals, arrivals + 0.1, TEN_PLUS_TWO, (1.0, 1.0, 0.25))
    assert {batch.worker for batch in found.batches} == {0, 1, 2}
    assert found.best_found >= 0.8 * found.upper_bound


def test_knowing_what_comes_pays_when_it_pays_to_wait() -> None:
    """Greedy would start at once and make the second late."""
    found = ask([0.0, 0.001], [0.020, 0.021], TEN_PLUS_TWO)
    assert found.exact == 2
    (batch,) = found.batches
    assert batch == PlannedBatch(0.001, pytest.approx(0.015), (0, 1))


def test_it_gives_up_whom_nobody_can_serve_and_whoever_costs_two_others() -> None:
    # 10 for one or two: the first blocks the two after it, the last is due before it could end.
    found = ask([0, 1, 1, 30], [10.5, 11, 11, 39], table(10.0, 10.0))
    assert found.exact == 2
    assert [batch.requests for batch in found.batches] == [(1, 2)]


def test_bounds_that_do_not_meet_are_not_called_exact() -> None:
    # A batch of one takes longer than one of two: as if it could be filled up, one would be served.
    found = ask([0.0], [2.0], table(3.0, 1.0))
    assert (found.best_found, found.upper_bound, found.exact) == (0, 1, None)


def test_the_optimum_of_a_long_overload_is_about_the_capacity() -> None:
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 519, 2000))  # load 1.2
    found = ask(arrivals, arrivals + 0.2, TEN_PLUS_TWO)
    assert found.exact is not None
    assert 0.83 < found.exact / found.num_offered < 0.90  # capacity / offered is 0.83
    served = check_schedule(found.batches, arrivals, arrivals + 0.2, TEN_PLUS_TWO.batch_s)
    assert served == found.exact


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([PlannedBatch(0, 1, ())], "got 0 requests; expected 1-2"),
        ([PlannedBatch(2, 4, (0, 1, 2))], "got 3 requests; expected 1-2"),
        ([PlannedBatch(2, 4, (0, 0))], "second time"),
        ([PlannedBatch(0, 1, (0,)), PlannedBatch(1, 2, (0,))], "batch 1: got a request for"),
        ([PlannedBatch(0, 1, (1,))], "last came at 1"),
        ([PlannedBatch(0, 1, (0,)), PlannedBatch(0.9, 1.9, (1,))], "busy until 1"),
        ([PlannedBatch(0, 0.5, (0,))], "takes 0.5 s; expected 1"),
        ([PlannedBatch(9, 10, (0,))], "after a deadline"),
    ],
)
def test_a_schedule_that_no_worker_can_run_is_refused(
    batches: list[PlannedBatch], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        check_schedule(batches, np.array([0.0, 1.0, 2.0]), np.full(3, 8.0), (1.0, 2.0))


def test_senseless_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="due_s: got 1; expected 2"):
        ask([0.0, 1.0], [2.0], TEN_PLUS_TWO)
    with pytest.raises(ValueError, match="worker_speeds"):
        oracle(np.zeros(1), np.ones(1), TEN_PLUS_TWO, worker_speeds=(1.0, 0.0))


def test_a_service_table_says_what_it_can_do() -> None:
    service = ServiceTable(prefill_s=(1.0, 1.5), step_s=(2.0, 3.0), num_steps=4)
    assert service.batch_s == (9.0, 13.5)
    assert service.capacity_per_s == 2 / 13.5
    assert service.joined_rate_per_s == 1 / (0.75 + 4 * 1.5)
    assert service.alone_s == 9.0
    assert TEN_PLUS_TWO.batch_s[15] == pytest.approx(0.042)
    assert TEN_PLUS_TWO.rate_per_s(within_s=0.047) == pytest.approx(18 / 0.046)
    assert TEN_PLUS_TWO.rate_per_s(within_s=0.011) == 0.0
    merged = ServiceTable(prefill_s=(1.0, 1.5), step_s=(2.0, 3.0), num_steps=4, base_s=0.5)
    assert (merged.batch_s, merged.joined_s(2)) == (service.batch_s, 1.0)
    assert merged.joined_rate_per_s == 1 / (0.5 + 4 * 1.5)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"num_steps": 0}, "num_steps: got 0"),
        ({"step_s": (), "prefill_s": ()}, "step_s: got nothing"),
        ({"prefill_s": (0.0, 0.0)}, "prefill_s: got 2 sizes; expected those of step_s, 1"),
        ({"prefill_s": (-1.0,)}, "expected at least 0"),
        ({"step_s": (0.0,)}, "expected above 0"),
        ({"base_s": 0.5}, r"base_s: got 0\.5; expected 0 to the shortest prefill, 0\.0"),
    ],
)
def test_senseless_service_tables_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ServiceTable(**{"prefill_s": (0.0,), "step_s": (1.0,), "num_steps": 1, **values})


OFFERS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.004, 0.03]),  # after the one before
        st.sampled_from([0.02, 0.05, 0.2]),  # objective
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=60,
)


@pytest.mark.parametrize("name", choices("batching"))
@given(offers=OFFERS, told=st.booleans(), speeds=st.sampled_from([(1.0,), (1.0, 0.5)]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
def test_no_strategy_passes_the_bound(
    choice: Callable[..., Any],
    name: str,
    offers: list[tuple[float, float, int]],
    told: bool,
    speeds: tuple[float, ...],
) -> None:
    gaps, objectives, priorities = zip(*offers, strict=True)
    offered = Offered(np.cumsum(gaps), np.asarray(objectives), np.asarray(priorities))
    strategy = choice("batching", name).strategy
    outcome = simulate(offered, strategy, TEN_PLUS_TWO, speeds, tell_deadlines=told)
    bound = oracle(
        offered.arrival_s, offered.due_s, TEN_PLUS_TWO, speeds, strategy.joins_running
    ).upper_bound
    assert outcome.num_good <= bound
    if not told:
        assert outcome.answered.all()
