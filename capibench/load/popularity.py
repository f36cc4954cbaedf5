"""Which question is asked: Zipf's law over a ranking that is drawn once per seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def zipf_shares(num_items: int, exponent: float) -> npt.NDArray[np.float64]:
    """Probability of each rank, most popular first: rank k has weight 1 / k**exponent; 0: uniform.

    (Zipf 1949; for web requests Breslau et al. 1999, exponents of 0.64 to 0.83.)
    """
    weights = np.arange(1, num_items + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def draw(
    shares: Sequence[float] | npt.NDArray[np.float64], num_draws: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """`num_draws` indices by their shares; exactly one uniform number each (inverse transform)."""
    cumulative = np.cumsum(shares)
    cumulative /= cumulative[-1]  # ends in exactly 1, above every drawn number
    return np.searchsorted(cumulative, rng.random(num_draws), side="right").astype(np.int64)
