"""Arrivals of the batching study: times in order, in no unit until a load is chosen. Pure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from capibench.batching.offline import Array
from capibench.load.traces import read_trace

BURSTY_CV = 4.0  # standard deviation of the gaps over their mean; Poisson has 1
CALM_LOAD, BURST_FACTOR = 0.5, 10.0
CALM_S, BURST_S, AFTER_S = 10.0, 5.0, 65.0


def poisson(count: int, rng: np.random.Generator) -> Array:
    """Many independent users."""
    return np.cumsum(rng.standard_exponential(count))


def bursty(count: int, rng: np.random.Generator) -> Array:
    """Gamma gaps with a coefficient of variation of `BURSTY_CV`: clusters and long silences."""
    shape = BURSTY_CV**-2
    return np.cumsum(rng.gamma(shape, 1.0 / shape, count))


def recorded(path: Path, count: int, part: int) -> Array:
    """The `part`-th stretch of `count` requests of an Azure trace.

    Raises:
        ValueError: the trace has no such stretch.
    """
    rows = read_trace(str(path), "azure").rows[part * count : (part + 1) * count]
    if len(rows) < count:
        raise ValueError(f"--azure: {path.name} ends within stretch {part} of {count} requests")
    return np.array([row.arrival_s for row in rows])


def at_rate(times: Array, rate_per_s: float) -> Array:
    """The same pattern from 0 on, so that the mean rate is `rate_per_s` exactly."""
    began = times - times[0]
    return began * (len(began) / float(began[-1]) / rate_per_s)


def burst(capacity_per_s: float, rng: np.random.Generator) -> Array:
    """Poisson at half the capacity, ten times that for `BURST_S`, then half again."""
    calm = CALM_LOAD * capacity_per_s
    parts, begin_s = [], 0.0
    for seconds, rate in ((CALM_S, calm), (BURST_S, BURST_FACTOR * calm), (AFTER_S, calm)):
        parts.append(begin_s + rng.uniform(0.0, seconds, rng.poisson(rate * seconds)))
        begin_s += seconds
    return np.sort(np.concatenate(parts))
