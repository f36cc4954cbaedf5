"""Measures `features.Features` on samples of vectors and queries."""

from __future__ import annotations

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.exact_scan import nearest, use_blas_for_batches
from capibench.index.metric import Floats, Metric, comparable
from capibench.index.tuning.features import (
    Features,
    cluster_share,
    intrinsic_dimension,
    query_shift,
)

_NUM_NEIGHBOURS = 20
_NUM_PROBES = 256  # vectors, and queries, whose neighbours are looked at
_NUM_VECTORS = 8_192  # of the sample among which they are looked for


def measure_features(vectors: Vectors, queries: Vectors, metric: Metric, seed: int) -> Features:
    """Of [n, d] `vectors` and [m, d] `queries` that are not among them. Takes well under a second
    whatever n: distances within a sample are larger than within the whole, by the same factor for
    vectors and queries, and their ratios are what is used."""
    generator = np.random.default_rng(seed)
    n, d = vectors.shape
    use_blas_for_batches(d)
    chosen = generator.permutation(n)[: _NUM_VECTORS + _NUM_PROBES]
    sample = comparable("vectors", vectors[chosen], metric)
    num_probes = min(_NUM_PROBES, len(sample) // 2)
    probes, base = sample[:num_probes], sample[num_probes:]
    k = min(_NUM_NEIGHBOURS, len(base))
    own = _distances(probes, base, k)
    asked = comparable("queries", queries[:_NUM_PROBES], metric)
    of_queries = _distances(asked, base, 1)[:, 0] if k else np.empty(0)
    return Features(
        num_vectors=n,
        dimension=d,
        vectors_bytes=n * d * 4,
        intrinsic_dimension=intrinsic_dimension(own),
        cluster_share=cluster_share(base, seed),
        query_shift=query_shift(of_queries, own[:, 0]) if num_probes else None,
    )


def _distances(queries: Vectors, vectors: Vectors, k: int) -> Floats:
    """Euclidean distances [m, k] to the k nearest, ascending."""
    if not len(queries) or not k:
        return np.empty((len(queries), k))
    _, scores = nearest(queries, vectors, k, Metric.L2)
    distances: Floats = np.sqrt(np.maximum(-scores.astype(np.float64), 0))
    return distances
