"""Intervals, paired differences, saturation and Pareto fronts: when is a number a difference?

Everything here is pure and vectorised; randomness comes from a seed that the caller gives.
Latencies of consecutive requests depend on each other (they queue behind one another), so the
plain formulas for independent samples would give intervals that are too narrow:

* percentiles: order-statistic intervals (Conover, Practical Nonparametric Statistics, §3.2) with
  the sample size reduced to the effective one of the exceedance indicator;
* means: moving-block bootstrap (Künsch 1989), the block length from the first autocorrelation as
  for an AR(1) process (Andrews 1991, §6), widened by Student's t for the few blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special  # scipy.stats takes a second to import, in the process of every run

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval (None: not known) and the number of samples behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


def effective_size(samples: Array) -> float:
    """How many independent samples tell as much about the mean as these (time-ordered) ones.

    Initial positive sequence of autocorrelations (Geyer 1992), never more than `len(samples)`.
    """
    n = len(samples)
    if n < 4:
        return float(n)
    centred = samples - samples.mean()
    variance = float(centred @ centred)
    if variance <= 0.0:
        return float(n)
    inflation = 1.0
    for lag in range(1, min(n // 3, 200)):
        correlation = float(centred[:-lag] @ centred[lag:]) / variance
        if correlation < 2.0 / math.sqrt(n):  # indistinguishable from none
            break
        inflation += 2.0 * correlation
    return max(1.0, n / inflation)


def percentile(samples: Array, quantile: float) -> Estimate:
    """The `quantile` (0..1) of time-ordered `samples` (not empty) with its 95 % interval.

    The interval's ends are order statistics; an end that the sample is too small to bound is None.
    """
    ordered = np.sort(samples)
    n = len(ordered)
    value = float(np.quantile(ordered, quantile))
    size = effective_size((samples > value).astype(np.float64))
    low_rank, high_rank = percentile_ranks(n, quantile, size)
    return Estimate(
        value,
        float(ordered[low_rank]) if low_rank is not None else None,
        float(ordered[high_rank]) if high_rank is not None else None,
        n,
    )


def percentile_ranks(
    n: int, quantile: float, effective_n: float | None = None
) -> tuple[int | None, int | None]:
    """Zero-based ranks (r, s) with P(x[r] <= true quantile <= x[s]) >= 95 %, None: unbounded.

    The number of samples below the true quantile is Binomial(n, quantile) whatever their
    distribution; with `effective_n` < n its spread is that of the smaller sample.
    """
    size = max(1, math.floor(min(effective_n, n))) if effective_n is not None else n
    tail = (1.0 - CONFIDENCE) / 2.0
    below = _binomial_quantile(tail, size, quantile)
    above = _binomial_quantile(1.0 - tail, size, quantile) + 1
    if size != n:
        below = math.floor(below * n / size)
        above = math.ceil(above * n / size)
    low = below - 1  # 1-based rank `below` is the largest with P(count < below) <= tail
    high = above - 1
    return (low if low >= 0 else None, high if high < n else None)


def _binomial_quantile(probability: float, n: int, p: float) -> int:
    """The least k with P(Binomial(n, p) <= k) >= `probability`."""
    k = max(0, math.ceil(float(special.bdtrik(probability, n, p))))
    return k - 1 if k > 0 and special.bdtr(k - 1, n, p) >= probability else k


def share(hits: npt.NDArray[np.bool_]) -> Estimate:
    """Share of true values (time-ordered, not empty) with its Clopper-Pearson interval."""
    n = len(hits)
    value = float(hits.mean())
    size = effective_size(hits.astype(np.float64))
    count = value * size
    tail = (1.0 - CONFIDENCE) / 2.0
    low = 0.0 if count <= 0 else float(special.betaincinv(count, size - count + 1, tail))
    high = 1.0 if count >= size else float(special.betaincinv(count + 1, size - count, 1 - tail))
    return Estimate(value, low, high, n)


def mean(samples: Array, seed: int) -> Estimate:
    """Mean of time-ordered `samples` (not empty) with its moving-block bootstrap interval."""
    n = len(samples)
    value = float(samples.mean())
    if n < 4:
        return Estimate(value, None, None, n)
    length = block_length(samples)
    resampled = samples[_block_indices(n, length, seed)].mean(axis=1)
    # A block's mean varies about the resampling mean with n - length of n degrees of freedom.
    spread = float(resampled.std(ddof=1)) * math.sqrt(n / max(n - length, 1))
    margin = _t_quantile(n, length) * spread
    return Estimate(value, value - margin, value + margin, n)


def block_length(samples: Array) -> int:
    """Length of the blocks that keep the dependence between neighbours (1: independent)."""
    n = len(samples)
    centred = samples - samples.mean()
    variance = float(centred @ centred)
    if n < 8 or variance <= 0.0:
        return 1
    rho = float(np.clip(float(centred[:-1] @ centred[1:]) / variance, -0.97, 0.97))
    if abs(rho) < 2.0 / math.sqrt(n):
        return 1
    length = (6.0 * n * rho**2 / (1.0 - rho**2) ** 2) ** (1.0 / 3.0)
    return int(np.clip(math.ceil(length), 1, max(1, n // 5)))


def _block_indices(n: int, length: int, seed: int) -> npt.NDArray[np.int64]:
    """[NUM_RESAMPLES, n] indices made of random runs of `length` consecutive positions."""
    generator = np.random.default_rng(seed)
    num_blocks = math.ceil(n / length)
    starts = generator.integers(0, n - length + 1, size=(NUM_RESAMPLES, num_blocks))
    indices = (starts[:, :, None] + np.arange(length)).reshape(NUM_RESAMPLES, -1)
    return indices[:, :n]


def _t_quantile(n: int, length: int) -> float:
    degrees = max(1, n // length - 1)
    return float(special.stdtrit(degrees, 1.0 - (1.0 - CONFIDENCE) / 2.0))


@dataclass(frozen=True, slots=True)
class Difference:
    """`b` against `a` over the same requests: negative is faster. `tie`: nothing is shown."""

    value: float
    low: float
    high: float
    ratio: float  # statistic of b / statistic of a
    n: int
    tie: bool


Statistic = Literal["mean", "median", "p50", "p95", "p99"]
_QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def paired_difference(
    a: Array,
    b: Array,
    seed: int,
    statistic: Statistic = "mean",
    noise_floor: float = 0.0,
) -> Difference | None:
    """How much longer the same requests took in `b` than in `a`, with a 95 % interval.

    Args:
        a, b: one value per request, same order of requests (by intended time) in both.
        seed: of the bootstrap.
        statistic: mean or median of the differences, or the difference of two percentiles (both
            resampled with the same requests).
        noise_floor: a relative difference up to this is a tie whatever the interval says; the
            calibration kernel tells by how much the machine itself differed between two runs.

    Returns:
        None with fewer than 20 pairs: no interval could be trusted.
    """
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} values; expected {len(a)}, one for each of a")
    n = len(a)
    if n < 20:
        return None
    deltas = b - a
    if statistic == "mean":
        estimate = mean(deltas, seed)
        assert estimate.low is not None
        assert estimate.high is not None
        value, low, high = estimate.value, estimate.low, estimate.high
        base, other = float(a.mean()), float(b.mean())
    else:
        length = block_length(deltas)
        chosen = _block_indices(n, length, seed)
        if statistic == "median":
            value = float(np.median(deltas))
            resampled = np.median(deltas[chosen], axis=1)
            base, other = float(np.median(a)), float(np.median(b))
        else:
            q = _QUANTILES[statistic]
            resampled = np.quantile(b[chosen], q, axis=1) - np.quantile(a[chosen], q, axis=1)
            base, other = float(np.quantile(a, q)), float(np.quantile(b, q))
            value = other - base
        spread = float(resampled.std(ddof=1)) * math.sqrt(n / max(n - length, 1))
        margin = _t_quantile(n, length) * spread
        low, high = value - margin, value + margin
    ratio = other / base if base > 0 else math.inf
    tie = low <= 0.0 <= high or abs(ratio - 1.0) <= noise_floor
    return Difference(value, low, high, ratio, n, tie)


@dataclass(frozen=True, slots=True)
class Backlog:
    """Trend of the number of unfinished requests through the measurement window."""

    growth_per_request: float  # backlog gained per arriving request: 1 - service rate/arrival rate
    growth: float  # over the whole window, in requests
    saturated: bool


TREND_REQUESTS = 30
SATURATION_SHARE = 0.05
SATURATION_REQUESTS = 5.0


def backlog_trend(intended_s: Array, done_s: Array) -> Backlog | None:
    """Does the queue grow through the window? (open loop only)

    The backlog seen by each arrival is the number of earlier arrivals that are not done. Its
    least-squares slope against the arrival number is the share of the arrivals that the server
    cannot keep up with. `saturated` needs all of: a slope of at least 5 %; a growth of at least
    5 requests; and no return: in the last third the backlog never falls to the median of the
    first third, which a stable queue, however variable, does whenever it empties.
    """
    order = np.argsort(intended_s, kind="stable")
    arrivals, ends = intended_s[order], np.sort(done_s)
    n = len(arrivals)
    if n < TREND_REQUESTS:
        return None
    backlog = np.arange(n) - np.searchsorted(ends, arrivals, side="right")
    slope = float(np.polyfit(np.arange(n), backlog, 1)[0])
    third = n // 3
    returned = float(backlog[-third:].min()) <= float(np.median(backlog[:third]))
    growth = slope * n
    saturated = slope >= SATURATION_SHARE and growth >= SATURATION_REQUESTS and not returned
    return Backlog(slope, growth, saturated)


def pareto_front(points: Sequence[Sequence[float]], better: Sequence[str]) -> list[bool]:
    """Which `points` [n][m] no other point beats: at least as good in all, better in one.

    Args:
        better: "lower" or "higher" for each of the m coordinates.
    """
    sign = np.array([{"lower": 1.0, "higher": -1.0}[direction] for direction in better])
    values = np.asarray(points, dtype=np.float64).reshape(len(points), len(better)) * sign
    no_worse = (values[:, None, :] <= values[None, :, :]).all(axis=2)
    strictly = (values[:, None, :] < values[None, :, :]).any(axis=2)
    return [not beaten for beaten in (no_worse & strictly).any(axis=0)]
