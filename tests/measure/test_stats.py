"""Intervals cover what they promise, a run compared with itself is a tie, overload is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import binom

from capibench.measure import stats


@pytest.mark.parametrize(("n", "quantile"), [(200, 0.5), (400, 0.95), (2000, 0.99)])
def test_percentile_interval_covers_the_true_percentile(n: int, quantile: float) -> None:
    generator = np.random.default_rng(7)
    truth = -np.log(1 - quantile)
    covered = 0
    for _ in range(300):
        estimate = stats.percentile(generator.exponential(size=n), quantile)
        high = np.inf if estimate.high is None else estimate.high
        low = -np.inf if estimate.low is None else estimate.low
        covered += low <= truth <= high
    assert covered >= 0.93 * 300


@given(n=st.integers(1, 3000), quantile=st.floats(0.01, 0.999))
@settings(max_examples=200)
def test_ranks_are_the_exact_binomial_ones(n: int, quantile: float) -> None:
    low, high = stats.percentile_ranks(n, quantile)
    # x[r] lies above the quantile when at most r samples lie below it.
    above = 0.0 if low is None else float(binom.cdf(low, n, quantile))
    below = 0.0 if high is None else float(binom.sf(high, n, quantile))
    assert above <= 0.025 + 1e-9
    assert below <= 0.025 + 1e-9
    if low is not None and high is not None:
        assert low <= high


def test_an_end_that_too_few_samples_cannot_bound_is_open() -> None:
    estimate = stats.percentile(np.arange(100.0), 0.99)
    assert estimate.high is None
    assert estimate.low is not None


def test_dependence_widens_the_interval() -> None:
    generator = np.random.default_rng(3)
    independent = generator.normal(size=2000)
    dependent = _autoregressive(generator, 2000, 0.9)
    assert stats.effective_size(independent) > 1500
    assert stats.effective_size(dependent) < 400


def test_share_is_clopper_pearson() -> None:
    estimate = stats.share(np.array([True] * 100))
    assert estimate.high == 1.0
    assert estimate.low == pytest.approx(0.025 ** (1 / 100), abs=1e-6)


def test_mean_interval_covers_under_dependence() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        estimate = stats.mean(_autoregressive(generator, 300, 0.5), seed)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.0 <= estimate.high
    assert covered >= 0.91 * 200


def _autoregressive(generator: np.random.Generator, n: int, rho: float) -> stats.Array:
    noise = generator.normal(size=n + 100)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise)[100:])


@pytest.mark.parametrize("statistic", ["mean", "median", "p95"])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_comparing_a_process_with_itself_is_a_tie(statistic: stats.Statistic, rho: float) -> None:
    """A/A: at most 7 % of 400 tries may show a difference."""
    generator = np.random.default_rng(5)
    differences = 0
    for seed in range(400):
        common = 0.2 + generator.exponential(0.05, 200)  # the same requests
        a, b = (common + 0.01 * np.abs(_autoregressive(generator, 200, rho)) for _ in range(2))
        found = stats.paired_difference(a, b, seed, statistic)
        assert found is not None
        differences += not found.tie
    assert differences <= 0.07 * 400


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(2)
    a = 0.2 + generator.exponential(0.05, 300)
    found = stats.paired_difference(a, a * 0.9 + generator.normal(0, 0.005, 300), 1)
    assert found is not None
    assert not found.tie
    assert found.high < 0
    assert found.ratio == pytest.approx(0.9, abs=0.01)


def test_a_difference_smaller_than_the_machines_own_is_a_tie() -> None:
    a = np.linspace(0.1, 0.2, 100)
    assert stats.paired_difference(a, a * 1.03, 1, noise_floor=0.05).tie  # type: ignore[union-attr]
    assert not stats.paired_difference(a, a * 1.03, 1).tie  # type: ignore[union-attr]


def test_too_few_pairs_give_no_verdict() -> None:
    assert stats.paired_difference(np.ones(19), np.ones(19), 1) is None
    with pytest.raises(ValueError, match="b: got 2 values; expected 3"):
        stats.paired_difference(np.ones(3), np.ones(2), 1)


def _queue(load: float, n: int, seed: int) -> tuple[stats.Array, stats.Array]:
    """Arrivals and completions of a single server with exponential gaps and service times."""
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(1.0, n))
    service = generator.exponential(load, n)
    done, free = np.empty(n), 0.0
    for i in range(n):
        free = max(free, arrivals[i]) + service[i]
        done[i] = free
    return arrivals, done


@pytest.mark.parametrize(("load", "least", "most"), [(0.5, 0, 0), (0.8, 0, 3), (1.3, 57, 60)])
def test_saturation_is_seen_and_not_imagined(load: float, least: int, most: int) -> None:
    seen = sum(stats.backlog_trend(*_queue(load, 400, seed)).saturated for seed in range(60))
    assert least <= seen <= most


def test_pareto_front() -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (2.0, 0.8), (3.0, 0.9), (1.0, 0.5)]
    front = stats.pareto_front(points, ("lower", "higher"))
    assert front == [True, True, False, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
@settings(max_examples=100)
def test_the_front_is_never_empty_and_never_beaten(points: list[tuple[int, int]]) -> None:
    front = stats.pareto_front(points, ("lower", "lower"))
    assert any(front)
    for point, on in zip(points, front, strict=True):
        beaten = any(q != point and q[0] <= point[0] and q[1] <= point[1] for q in points)
        assert on != beaten
