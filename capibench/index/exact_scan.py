"""Exact comparison of queries with vectors by FAISS's kernels, without an index around them.

Thread counts are the process's business (the runner pins them), not an index's.
"""

from __future__ import annotations

import faiss
import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.metric import Metric

# Number of queries from which FAISS compares by matrix product instead of one by one. Its own
# default makes batched exact comparisons up to 11x slower than they can be (n=20,000, d=384, one
# thread: 300 queries in 319 ms against 29 ms). Single queries must stay sequential (1.1 against
# 2.7 ms); the two meet at 3 to 4 queries, whatever n above 1,000.
NUM_QUERIES_FOR_BLAS = 4


def faiss_metric(metric: Metric) -> int:
    """FAISS's number for it; a cosine is an inner product of unit vectors."""
    return int(faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT)


def use_blas_for_batches(dimension: int) -> None:
    """Calibrate FAISS for batches. The setting is global to the process, hence the same for every
    index type, and for IVF's choice of lists too. FAISS compares queries times dimension with it
    (found by bisection: the switch is at 16 * d for 16 queries)."""
    faiss.cvar.distance_compute_blas_threshold = NUM_QUERIES_FOR_BLAS * dimension


def nearest(queries: Vectors, vectors: Vectors, k: int, metric: Metric) -> tuple[Ids, Vectors]:
    """Rows and scores [m, k] of the nearest of contiguous [n, d] `vectors`, best first; -1 pads."""
    distances, rows = faiss.knn(queries, vectors, k, faiss_metric(metric))
    return rows, -distances if metric is Metric.L2 else distances


def nearest_among(
    queries: Vectors, vectors: Vectors, candidates: Ids, k: int, metric: Metric
) -> tuple[Ids, Vectors]:
    """The same among `candidates` only, without copying their vectors.

    Args:
        queries: [m, d].
        vectors: [n, d] float32, contiguous.
        candidates: rows [c], the same for all queries, or [m, c], where -1 ends a query's list.
        k: how many.
        metric: of the scores.
    """
    m, (n, d) = len(queries), vectors.shape
    rows = np.empty((m, k), dtype=np.int64)
    distances = np.empty((m, k), dtype=np.float32)
    stride = 0 if candidates.ndim == 1 else candidates.shape[1]
    scan = faiss.knn_L2sqr_by_idx if metric is Metric.L2 else faiss.knn_inner_products_by_idx
    scan(
        *(faiss.swig_ptr(array) for array in (queries, vectors, candidates)),
        *(d, m, n, candidates.shape[-1], k),
        *(faiss.swig_ptr(distances), faiss.swig_ptr(rows), stride),
    )
    return rows, -distances if metric is Metric.L2 else distances


def merged(parts: list[tuple[Ids, Vectors]], k: int) -> tuple[Ids, Vectors]:
    """The k best of several results over different rows; -1 pads, with score -inf."""
    rows = np.hstack([rows for rows, _ in parts])
    scores = np.hstack([np.where(rows < 0, -np.inf, scores) for rows, scores in parts])
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, 1)
    missing = k - rows.shape[1]
    if missing > 0:
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return rows, scores.astype(np.float32)
