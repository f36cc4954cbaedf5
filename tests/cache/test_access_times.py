"""Access times: percentiles within the stated error of those of the raw durations."""

from __future__ import annotations

import numpy as np
import pytest

from capibench.cache.tiers.access_times import AccessTimes


def test_percentiles_are_those_of_the_raw_durations_within_the_stated_error() -> None:
    durations = np.random.default_rng(0).lognormal(-12, 1.5, size=9000)
    times = AccessTimes()
    for duration_s in durations:
        times.add(float(duration_s))
    summary = times.summary()
    assert summary["accesses"] == 9000
    assert summary["mean_ms"] == pytest.approx(durations.mean() * 1e3)
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        exact = np.quantile(durations, share, method="inverted_cdf") * 1e3
        assert summary[name] == pytest.approx(exact, rel=0.017)


def test_nothing_counted_is_nothing_known_and_extremes_are_counted() -> None:
    assert AccessTimes().summary()["p50_ms"] is None
    times = AccessTimes()
    for duration_s in (0.0, 5e-9, -1e-9, 1e9):
        times.add(duration_s)
    assert times.summary()["accesses"] == 4
    both = times.merged(times, AccessTimes())
    assert both.summary()["accesses"] == 8
