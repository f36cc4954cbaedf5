"""What the vectors are like, as far as it decides which index suits them. Pure numpy.

Everything is measured on a sample against the vectors themselves; distances are Euclidean, which
for unit vectors order as the cosine does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.metric import Floats

_NUM_CLUSTERS = 64
_NUM_ITERATIONS = 8


@dataclass(frozen=True, slots=True)
class Features:
    """Measured; None where too few vectors were there to measure it."""

    num_vectors: int
    dimension: int
    vectors_bytes: int
    intrinsic_dimension: float | None  # how many directions neighbours really spread in
    cluster_share: float | None  # of the variance, between 64 clusters
    query_shift: float | None  # a query's distance to its nearest vector over a vector's own


def intrinsic_dimension(distances: Floats) -> float | None:
    """Maximum-likelihood estimate from the distances [m, k] of m points to their k nearest
    neighbours, ascending.

    Levina and Bickel, "Maximum Likelihood Estimation of Intrinsic Dimension", NIPS 2004, eq. 8,
    averaged over points as its inverse (MacKay and Ghahramani, "Comments on ...", 2005). Points
    with equal or zero distances (copies) say nothing and are left out; None where all are.
    """
    if distances.shape[1] < 3:
        return None
    usable = (distances[:, 0] > 0) & (distances[:, -1] > distances[:, 0])
    if not usable.any():
        return None
    kept = distances[usable]
    # k - 2 in place of k - 1 takes the bias of the estimate away.
    inverse = np.log(kept[:, -1:] / kept[:, :-1]).sum(axis=1) / (kept.shape[1] - 2)
    mean = float(inverse.mean())
    return 1 / mean if mean > 0 else None


def cluster_share(vectors: Vectors, seed: int) -> float | None:
    """Share of the variance of [n, d] `vectors` that lies between 64 clusters (k-means, Lloyd
    1982, from random vectors), measured on a second half that they were not
    made from. None with fewer than 1,024 vectors."""
    if len(vectors) < 16 * _NUM_CLUSTERS:
        return None
    generator = np.random.default_rng(seed)
    shuffled = vectors[generator.permutation(len(vectors))]
    learnt, held_out = np.array_split(shuffled, 2)
    centres = learnt[:_NUM_CLUSTERS]
    for _ in range(_NUM_ITERATIONS):
        nearest = _squared(learnt, centres).argmin(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, learnt)
        counts = np.bincount(nearest, minlength=_NUM_CLUSTERS)
        filled = counts > 0
        centres = centres.copy()
        centres[filled] = sums[filled] / counts[filled, None]
    inside = float(_squared(held_out, centres).min(axis=1).mean())
    total = float(((held_out - learnt.mean(axis=0)) ** 2).sum(axis=1).mean())
    return None if total <= 0 else max(0.0, 1 - inside / total)


def query_shift(of_queries: Floats, of_vectors: Floats) -> float | None:
    """Median distance of queries [m] to their nearest vector over that of vectors [n] to theirs:
    1 where queries look like the data, more where they come from elsewhere. None where the
    vectors' is 0 (copies)."""
    if not len(of_queries) or not len(of_vectors):
        return None
    usual = float(np.median(of_vectors))
    return float(np.median(of_queries)) / usual if usual > 0 else None


def _squared(vectors: Vectors, centres: Vectors) -> Vectors:
    """Squared distances [n, c]."""
    lengths = (vectors**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None, :]
    squared: Vectors = np.maximum(lengths - 2 * vectors @ centres.T, 0)
    return squared
