"""The effort is chosen by a bound that keeps its word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from choice_files import load_choice
from hypothesis import given
from hypothesis import strategies as st

from capibench.config import build
from capibench.errors import ConfigError
from capibench.index.tuning.objective import RecallSample


def sample(*recalls: float) -> RecallSample:
    return RecallSample(np.array(recalls * 200, dtype=np.float64), 10)


LADDER = {
    1: sample(0.5, 0.6),
    2: sample(0.95, 0.94),
    4: sample(0.9, 0.95),  # not monotone
    8: sample(0.96, 1.0),
    16: sample(1.0, 1.0),
}


@pytest.mark.parametrize("name", ["none", "recall_target"])
def test_nothing_to_choose(choice: Callable[..., Any], name: str) -> None:
    assert choice("index_tuning", name).choose((), LADDER.__getitem__) is None


def test_none_never_measures(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "none")
    assert tuning.choose((1, 2), lambda _: pytest.fail("measured")) is None
    assert not tuning.changes_effort


def test_least_effort_whose_bound_meets_the_target(choice: Callable[..., Any]) -> None:
    measured: list[int] = []

    def measure(effort: int) -> RecallSample:
        measured.append(effort)
        return LADDER[effort]

    chosen = choice("index_tuning", "recall_target", target_recall=0.95).choose(
        tuple(LADDER), measure
    )
    assert measured == [1, 2, 4, 8]  # walked up, no further than needed
    assert (chosen.effort, chosen.met) == (8, True)
    assert chosen.recall == pytest.approx(0.98)
    assert 0.95 <= chosen.lower_bound < chosen.recall
    assert [rung.effort for rung in chosen.tried] == measured
    assert chosen.tried[1].recall == pytest.approx(0.945)


def test_a_mean_at_the_target_is_not_enough(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "recall_target", target_recall=0.945)
    assert tuning.choose((2, 16), LADDER.__getitem__).effort == 16


def test_target_out_of_reach_gives_the_most_accurate(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "recall_target", target_recall=0.999)
    chosen = tuning.choose((1, 2, 4, 8), LADDER.__getitem__)
    assert (chosen.effort, chosen.met, len(chosen.tried)) == (8, False, 4)
    tied = tuning.choose((1, 2, 4), lambda _: LADDER[1])
    assert (tied.effort, tied.met) == (1, False)


@pytest.mark.parametrize("spread", ["graded", "all_or_nothing", "rare_disaster"])
def test_bound_keeps_its_confidence(spread: str) -> None:
    """In at most about 5 % of samples does the bound exceed the truth, however misses cluster."""
    generator = np.random.default_rng(0)
    num_tries, n, k = 4000, 300, 10
    if spread == "graded":
        truth = 0.93
        recalls = generator.binomial(k, truth, size=(num_tries, n)) / k
    elif spread == "all_or_nothing":
        truth = 0.93
        recalls = generator.binomial(1, truth, size=(num_tries, n)).astype(float)
    else:
        truth = 0.993
        recalls = generator.binomial(1, truth, size=(num_tries, n)).astype(float)
    too_high = np.mean([RecallSample(row, k).lower_bound(0.95) > truth for row in recalls])
    assert too_high <= 0.065


@given(
    st.lists(st.integers(0, 10), min_size=2, max_size=40),
    st.floats(0.5, 0.99),
)
def test_bound_is_below_the_mean_and_falls_with_confidence(
    hits: list[int], confidence: float
) -> None:
    recalls = np.array(hits, dtype=np.float64) / 10
    bound = RecallSample(recalls, 10).lower_bound(confidence)
    assert 0 <= bound <= recalls.mean() + 1e-12
    assert RecallSample(recalls, 10).lower_bound(0.995) <= bound + 1e-12


@given(st.lists(st.integers(0, 10), min_size=1, max_size=40))
def test_interval_holds_the_mean_and_mirrors(hits: list[int]) -> None:
    recalls = np.array(hits, dtype=np.float64) / 10
    mean, low, high = RecallSample(recalls, 10).interval()
    assert 0 <= low <= mean <= high <= 1
    _, mirrored_low, mirrored_high = RecallSample(1 - recalls, 10).interval()
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high))


def test_no_queries_no_recall() -> None:
    with pytest.raises(ValueError, match="per_query: got no queries"):
        RecallSample(np.zeros(0), 10)


def test_no_misses_is_not_certainty() -> None:
    perfect = RecallSample(np.ones(300), 10)
    one_miss = RecallSample(np.append(np.ones(299), 0.9), 10)
    assert 0.98 < one_miss.lower_bound(0.95) < perfect.lower_bound(0.95) < 0.995


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_recall": 0.0}, "index_tuning.target_recall: got 0.0; expected above 0"),
        ({"confidence": 1.0}, "index_tuning.confidence: got 1.0; expected 0.5 or more"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load_choice("index_tuning", "recall_target", **changes), "index_tuning")
