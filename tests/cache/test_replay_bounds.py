"""What no policy exceeds: against every decision that a cache could take, and against the shipped
policies."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.cache.policy import EvictionPolicy
from capibench.cache.replay.bounds import (
    belady_hits,
    belady_is_best,
    infinite_hits,
    most_hits,
    upper_bound,
)
from capibench.cache.replay.choices import load_policies, policy_names
from capibench.cache.replay.replay import Replayed, replay
from capibench.cache.replay.trace import KeyTrace, make_trace

TRACE = Path(__file__).parents[1] / "fixtures" / "traces" / "cache_keys.csv"
Entry = tuple[int, int, float]  # key, size, expiry


@functools.cache
def shipped() -> dict[str, EvictionPolicy]:
    return load_policies(policy_names(), None, ())


def replayed(trace: KeyTrace, capacity: int, warmup: int) -> Replayed:
    return replay(trace, shipped(), [capacity], warmup, lambda _: None)


def since(warmup: int, trace: KeyTrace) -> Any:
    return np.arange(len(trace)) >= warmup


def subsets(entries: Iterable[Entry], capacity: int) -> Iterable[frozenset[Entry]]:
    """All that fit."""
    listed = sorted(entries)
    for num in range(len(listed) + 1):
        for chosen in itertools.combinations(listed, num):
            if sum(size for _, size, _ in chosen) <= capacity:
                yield frozenset(chosen)


def most_by_trying_all(
    trace: KeyTrace, worth: Sequence[float], capacity: int, begin: int = 0
) -> float:
    """The most that accesses from `begin` on can gain, by every choice of what to hold after each
    access: a hit leaves the entry that is stored, a miss may store a new one."""
    num = len(trace)
    sizes = [1] * num if trace.sizes is None else trace.sizes.tolist()
    expires = np.full(num, np.inf) if trace.ttls_s is None else trace.times_s + trace.ttls_s
    best: dict[frozenset[Entry], float] = {frozenset(): 0.0}
    for place, key in enumerate(trace.ids.tolist()):
        after: dict[frozenset[Entry], float] = {}
        for held, gained in best.items():
            fresh = {e for e in held if e[0] == key and trace.times_s[place] < e[2]}
            total = gained + (worth[place] if fresh and place >= begin else 0.0)
            others = {e for e in held if e[0] != key}
            stored = fresh or {(key, sizes[place], float(expires[place]))}
            for state in subsets(others | stored, capacity):
                after[state] = max(after.get(state, 0.0), total)
        best = after
    return max(best.values())


def most_from_any_start(ids: Sequence[int], capacity: int, begin: int) -> int:
    """The most hits of entries of one size from `begin` on, whatever is held then of the keys that
    were asked for before."""
    best: dict[frozenset[int], int] = {
        frozenset(key for key, _, _ in start): 0
        for start in subsets({(key, 1, 0.0) for key in ids[:begin]}, capacity)
    }
    for key in ids[begin:]:
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            for chosen in subsets({(k, 1, 0.0) for k in held | {key}}, capacity):
                state = frozenset(k for k, _, _ in chosen)
                after[state] = max(after.get(state, 0), hits + (key in held))
        best = after
    return max(best.values())


def test_the_best_after_a_warm_up_is_the_best_from_any_start() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        num = int(rng.integers(2, 16))
        ids = rng.integers(0, int(rng.integers(2, 6)), num).tolist()
        capacity, begin = int(rng.integers(1, 4)), int(rng.integers(0, num))
        trace = make_trace("made", ids)
        most = most_from_any_start(ids, capacity, begin)
        assert most_hits(trace, capacity, since(begin, trace)) == most
        assert belady_hits(trace, capacity, since(begin, trace)).sum() == most


def test_only_hits_that_count_are_held() -> None:
    """Such as those of a run whose first measured requests were sent among the last to warm up."""
    trace = make_trace("made", ["a", "b", "b", "b", "a"])
    counted = np.asarray([False, False, True, False, True])
    assert belady_hits(trace, 1, counted).sum() == 1
    counted = np.asarray([True, False, False, False, True])
    assert belady_hits(trace, 1, counted).tolist() == [False] * 4 + [True]


IDS = st.lists(st.integers(0, 4), min_size=1, max_size=14)


@settings(max_examples=40)
@given(ids=IDS, capacity=st.integers(1, 4))
def test_belady_is_the_most_that_can_be_hit(ids: list[int], capacity: int) -> None:
    trace = make_trace("made", ids)
    most = most_by_trying_all(trace, [1.0] * len(ids), capacity)
    assert belady_hits(trace, capacity, since(0, trace)).sum() == most
    assert belady_is_best(trace)


@settings(max_examples=40)
@given(data=st.data(), ids=IDS, capacity=st.integers(1, 12))
def test_the_upper_bound_is_never_below_the_most(data: Any, ids: list[int], capacity: int) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=5, max_size=5))
    costs = data.draw(st.lists(st.floats(0.1, 5), min_size=5, max_size=5))
    worth = [costs[key] for key in ids]
    trace = make_trace("made", ids, sizes=np.asarray([sizes[key] for key in ids]))
    bound = upper_bound(trace, capacity, np.asarray(worth), since(0, trace))
    assert bound >= most_by_trying_all(trace, worth, capacity) - 1e-9
    assert belady_hits(trace, capacity, since(0, trace)).sum() <= infinite_hits(trace).sum()


@st.composite
def made_traces(draw: Any, num_keys: int, longest: int) -> tuple[KeyTrace, int]:
    """A trace whose entries may differ in size and lifetime from access to access, and how many of
    its accesses warm up."""
    ids = draw(st.lists(st.integers(0, num_keys - 1), min_size=1, max_size=longest))

    def column(values: Any) -> Any:
        return draw(st.lists(values, min_size=len(ids), max_size=len(ids)))

    sizes = np.asarray(column(st.integers(1, 3))) if draw(st.booleans()) else None
    ttls_s = (
        np.asarray(column(st.sampled_from([0.5, 2.0, 4.0, 9.0]))) if draw(st.booleans()) else None
    )
    costs_s = np.asarray(column(st.sampled_from([0.0, 1.0, 2.5]))) if draw(st.booleans()) else None
    times_s = np.cumsum(column(st.sampled_from([0.0, 0.5, 1.0])))
    trace = make_trace(
        "made", ids, sizes=sizes, ttls_s=ttls_s, costs_s=costs_s, times_s=times_s.astype(float)
    )
    return trace, draw(st.integers(0, len(ids) - 1))


@settings(max_examples=150)
@given(made=made_traces(num_keys=3, longest=9), capacity=st.integers(1, 4))
def test_whatever_a_cache_does_it_stays_within_the_bounds(
    made: tuple[KeyTrace, int], capacity: int
) -> None:
    trace, warmup = made
    counted = since(warmup, trace)
    most = most_hits(trace, capacity, counted)
    best = most_by_trying_all(trace, [1.0] * len(trace), capacity, warmup)
    assert best <= most
    assert belady_hits(trace, capacity, counted).sum() <= best
    if belady_is_best(trace):
        assert belady_hits(trace, capacity, counted).sum() == best == most
    if trace.costs_s is not None:
        bound = upper_bound(trace, capacity, trace.costs_s, counted)
        assert bound >= most_by_trying_all(trace, trace.costs_s, capacity, warmup) - 1e-9


@settings(max_examples=150)
@given(made=made_traces(num_keys=9, longest=60), capacity=st.integers(1, 6))
def test_no_shipped_policy_exceeds_the_bounds(made: tuple[KeyTrace, int], capacity: int) -> None:
    trace, warmup = made
    outcome = replayed(trace, capacity, warmup)
    (ceiling,) = outcome.ceilings
    for row in outcome.outcomes:
        assert row.below_bound is not None
        assert row.below_bound >= 0, row.policy
        if ceiling.saved_share is not None:
            assert (row.saved_share or 0) <= ceiling.saved_share + 1e-9, row.policy


def test_a_long_warm_up_does_not_let_a_policy_exceed_the_best() -> None:
    """Belady over the whole of such streams has fewer hits in the part that counts."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        num = int(rng.integers(10, 60))
        trace = make_trace("made", (rng.zipf(1.3, num) % 12).tolist())
        outcome = replayed(trace, int(rng.integers(1, 5)), int(rng.integers(0, num - 1)))
        assert min(row.below_bound or 0 for row in outcome.outcomes) >= 0


@pytest.mark.parametrize(
    "columns",
    [{"sizes": np.asarray([1, 2, 2])}, {"ttls_s": np.asarray([10.0, 0.5, 0.5])}],
    ids=["sizes", "lifetimes"],
)
def test_what_counts_is_what_was_stored(columns: dict[str, Any]) -> None:
    """Later accesses to a key say other sizes and lifetimes, which a hit does not take over."""
    outcome = replayed(make_trace("made", ["a"] * 3, **columns), 1, 0)
    (ceiling,) = outcome.ceilings
    assert ceiling.hit_ratio == 2 / 3
    assert not ceiling.is_reached
    assert {row.hits for row in outcome.outcomes if row.policy == "lru"} == {2}


def test_lifetimes_that_outlast_the_trace_change_nothing() -> None:
    ids, times_s = list("abcabdabe"), np.arange(9.0)
    for ttl_s, lasts in ((9.0, True), (8.0, False)):
        trace = make_trace("made", ids, times_s=times_s, ttls_s=np.full(9, ttl_s))
        assert belady_is_best(trace) == lasts
        counted = since(0, trace)
        assert most_hits(trace, 2, counted) == most_hits(make_trace("made", ids), 2, counted)


@pytest.mark.parametrize("capacity", [10, 60])
def test_no_policy_exceeds_belady_nor_belady_the_infinite_cache(capacity: int) -> None:
    keys = pd.read_csv(TRACE)["key"].tolist()
    outcome = replayed(make_trace("made", keys), capacity, 0)
    (ceiling,) = outcome.ceilings
    assert ceiling.belady is not None
    assert ceiling.is_reached
    assert all(row.hits <= ceiling.belady.hits for row in outcome.outcomes)
    assert ceiling.belady.hits <= outcome.infinite.hits == len(keys) - len(set(keys))
    lru = next(row for row in outcome.outcomes if row.policy == "lru")
    assert lru.below_bound == pytest.approx(ceiling.belady.hit_ratio - lru.hit_ratio)
    assert lru.saved_share is None
    assert lru.byte_hit_ratio is None
