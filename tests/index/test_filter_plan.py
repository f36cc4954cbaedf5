"""How filtered searches are answered. No clock is asked here: costs are given as functions, or no
cost is looked at since the share is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_contract import Reference, check_answers, drawn, ids_of
from test_index_contract import APPROXIMATE

from capibench.index.allowed import Allowed
from capibench.index.filter_plan import FilterPlanner, quickest_s, relative_cost, worth_asking
from capibench.index.metric import Metric
from capibench.index.recall import exact_search, recall_at_k
from capibench.index.vector_store import RowSet

KEY = (10, 1)


def of_rows(num: int) -> RowSet:
    return RowSet(np.arange(num), 2 * num)


def stream(
    planner: FilterPlanner, filters: list[RowSet], costs: list[float], comes_short: list[bool]
) -> float:
    """Cost of one search with each filter, in scans."""
    total = 0.0
    for among in filters:
        left = True
        for i in planner.attempts(among, 0.5, KEY, len(costs), lambda i: costs[i]):
            total += costs[i]
            left = comes_short[i]
            planner.record(among, 0.5, KEY, i, short=left)
            if not left:
                break
        total += left
    return total


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), max_size=4))
def test_no_other_attempts_are_expected_to_cost_less(attempts: list[tuple[float, float]]) -> None:
    costs, shorts = [c for c, _ in attempts], [s for _, s in attempts]

    def expected(chosen: list[int]) -> float:
        if not chosen:
            return 1.0
        return 1.25 * costs[chosen[0]] + shorts[chosen[0]] * expected(chosen[1:])

    subsets = [[i for i in range(len(costs)) if mask >> i & 1] for mask in range(2 ** len(costs))]
    chosen = worth_asking(costs, shorts)
    assert expected(chosen) == pytest.approx(min(expected(subset) for subset in subsets))


def test_a_tie_goes_to_the_scan() -> None:
    assert worth_asking([0.85], [0.0]) == []
    assert worth_asking([0.75], [0.0]) == [0]


@settings(max_examples=12)
@given(st.floats(0.01, 1.5), st.floats(1, 4), st.booleans())
def test_attempts_in_vain_cost_little(cost: float, wider: float, same: bool) -> None:
    """Of one filter, and of filters that are each prepared for one search."""
    filters = [of_rows(5)] * 1000 if same else [of_rows(5) for _ in range(1000)]
    costs = [cost * wider**i for i in range(3)]
    assert stream(FilterPlanner(), filters, costs, [True] * 3) <= 1.05 * len(filters)


def test_filters_that_find_are_asked_on() -> None:
    among = of_rows(5)
    assert stream(FilterPlanner(), [among] * 100, [0.5, 0.9], [False, False]) == 50
    # The wider attempt is the cheaper way as soon as the first is known to come short.
    assert stream(FilterPlanner(), [among] * 1000, [0.2, 0.3], [True, False]) < 340


def test_a_hard_filter_does_not_condemn_an_easy_one_for_ever() -> None:
    planner, hard, easy = FilterPlanner(), of_rows(5), of_rows(5)
    stream(planner, [hard] * 100, [0.3], [True])
    assert stream(planner, [easy] * 300, [0.3], [False]) < 0.6 * 300
    assert stream(planner, [easy] * 100, [0.3], [False]) == pytest.approx(30)


def test_costs_are_measured_once_for_a_size_and_wider_attempts_when_needed() -> None:
    planner, asked = FilterPlanner(), []

    def cost(attempt: int) -> float:
        asked.append(attempt)
        return 0.1

    first, second = of_rows(5), of_rows(5)
    for among in (first, second, first):
        planner.attempts(among, 0.5, KEY, 3, cost)
        planner.record(among, 0.5, KEY, 0, short=False)
    assert asked == [0]
    planner.record(first, 0.5, KEY, 0, short=True)
    planner.attempts(second, 0.5, KEY, 3, cost)
    assert asked == [0]
    planner.attempts(first, 0.5, KEY, 3, cost)
    assert asked == [0, 1]
    planner.attempts(of_rows(1), 0.1, KEY, 3, cost)
    planner.attempts(first, 0.5, (10, 7), 3, cost)
    assert asked == [0, 1, 0, 0]


def test_both_are_called_equally_often() -> None:
    calls: list[str] = []
    one, other = quickest_s(lambda: calls.append("one"), lambda: calls.append("other"))
    assert one >= 0
    assert other >= 0
    assert calls == ["one", "other"] * (len(calls) // 2)


def test_a_structure_that_lost_with_a_few_queries_is_not_asked_all() -> None:
    asked = []

    def ask(num_queries: int) -> None:
        asked.append(num_queries)
        if num_queries > 16:
            sum(range(1_000_000))

    assert relative_cost(lambda: None, ask, 1) >= 0
    assert set(asked) == {1}
    asked.clear()
    assert relative_cost(lambda: sum(range(1000)), ask, 64) > 1
    assert max(asked) <= 32


def near_topic(n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors along a line from one topic to another, and queries of both."""
    generator = np.random.default_rng(0)
    place = generator.random((n + 40, 1), dtype=np.float32) * 2 - 1
    points = place * drawn(1, d, 1) * np.float32(2.5) + drawn(n + 40, d, 2)
    order = np.argsort(place[:n, 0])
    return points[:n], points[n:], order


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_filters_against_the_queries_lose_no_recall(
    choice: Callable[..., Any], name: str, share: float
) -> None:
    """What is allowed lies at one end, and most queries' own neighbours are not allowed. The
    structure must answer what it can, whatever time it takes."""
    n = 3000
    vectors, queries, order = near_topic(n, 16)
    ids = ids_of(n)
    inside = order[: int(n * share)]
    index = choice("index", name, exact_filter_share=0.0)
    index.build(vectors, ids)
    exact = exact_search(vectors, queries, 10, ids, Metric.COSINE)
    # The least effort of twelve that keeps the neighbours where there is no filter.
    ladders = index.query_ladders()
    for i in range(12):
        index.set_query_params(
            {n: ladder[i * (len(ladder) - 1) // 11] for n, ladder in ladders.items()}
        )
        if recall_at_k(index.search(queries, 10)[0], exact).mean() >= 0.95:
            break
    exact = exact_search(vectors[inside], queries, 10, ids[inside], Metric.COSINE)
    found, _ = index.search(queries, 10, Allowed(ids[inside]))
    assert np.isin(found, ids[inside]).all()
    assert recall_at_k(found, exact).mean() >= 0.95


@pytest.mark.parametrize("name", ["pq", "sq8"])
def test_a_measured_choice_answers_right(choice: Callable[..., Any], name: str) -> None:
    """Whatever the clock says, single and batched."""
    vectors, ids, queries = drawn(2500, 16, 0), ids_of(2500), drawn(12, 16, 1)
    index = choice("index", name)
    index.build(vectors, ids)
    index.remove(ids[:100])
    reference = Reference(vectors[100:], ids[100:], Metric.COSINE)
    allowed = set(ids[np.random.default_rng(0).random(2500) < 0.6].tolist())
    for size in (1, 12):
        for begin in range(0, 12, size):
            part = queries[begin : begin + size]
            assert check_answers(index, reference, part, 10, allowed) >= 0.9
    same = Allowed(np.array(sorted(allowed)))
    first = index.search(queries, 10, same)[0]
    assert np.isin(first, ids[100:]).all()
    assert index.search(queries, 10, same)[0].shape == first.shape
