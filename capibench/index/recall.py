"""The truth an index is held to: exact search in float64, and recall against it. Pure numpy."""

from __future__ import annotations

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.metric import Floats, Metric, exact_scores

_QUERIES_PER_BLOCK = 256
_VECTORS_PER_BLOCK = 16_384  # one block of similarities is 32 MiB


def exact_search(
    vectors: Vectors, queries: Vectors, k: int, ids: Ids | None = None, metric: Metric = Metric.IP
) -> Ids:
    """The k vectors of greatest score with each query, by comparing all in float64.

    Args:
        vectors: [n, d].
        queries: [m, d]; held-out ones, never database vectors (METHOD: quality beside speed).
        k: how many; where fewer vectors exist, -1 pads.
        ids: [n] names of the vectors; None: their row numbers.
        metric: of the scores; the inner product of unit vectors is their cosine.

    Returns:
        ids [m, k], best first, ties by row.
    """
    if k < 1:
        raise ValueError(f"k: got {k}; expected at least 1")
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    similarities = np.full((len(queries), k), -np.inf)
    for first in range(0, len(queries), _QUERIES_PER_BLOCK):
        block = slice(first, first + _QUERIES_PER_BLOCK)
        wanted = queries[block]
        for start in range(0, len(vectors), _VECTORS_PER_BLOCK):
            part = vectors[start : start + _VECTORS_PER_BLOCK]
            part_rows = np.arange(start, start + len(part), dtype=np.int64)
            all_rows = np.hstack(
                [rows[block], np.broadcast_to(part_rows, (len(wanted), len(part)))]
            )
            all_similarities = np.hstack([similarities[block], exact_scores(wanted, part, metric)])
            if all_similarities.shape[1] > k:
                best = np.argpartition(-all_similarities, k - 1, axis=1)[:, :k]
                all_rows = np.take_along_axis(all_rows, best, axis=1)
                all_similarities = np.take_along_axis(all_similarities, best, axis=1)
            order = np.lexsort((all_rows, -all_similarities), axis=1)
            rows[block] = np.take_along_axis(all_rows, order, axis=1)
            similarities[block] = np.take_along_axis(all_similarities, order, axis=1)
    return rows if ids is None else np.where(rows >= 0, ids[rows], np.int64(-1))


def similarities_of(
    vectors: Vectors, queries: Vectors, rows: Ids, metric: Metric = Metric.IP
) -> Floats:
    """True scores, in float64, of each query [m, d] with the vectors at `rows` [m, k]; -inf where
    a row is -1. Scores what an index found without trusting its own arithmetic."""
    similarities = np.empty(rows.shape)
    for i, found in enumerate(rows):
        similarities[i] = exact_scores(queries[i : i + 1], vectors[found], metric)[0]
    similarities[rows == -1] = -np.inf
    return similarities


def recall_at_k(
    found_ids: Ids,
    exact_ids: Ids,
    found_similarities: Floats | None = None,
    exact_similarities: Floats | None = None,
) -> Floats:
    """Share of each query's true neighbours that were found, [m].

    Args:
        found_ids: [m, k'] unique per row, -1 pads.
        exact_ids: [m, k] from `exact_search`, -1 pads. Its width is the k of recall@k.
        found_similarities: [m, k'] from `similarities_of` the found ids; given together with
            `exact_similarities` [m, k], whatever ties with the k-th neighbour (within 1e-6)
            counts as found, since which of several equal texts is "the" k-th is an accident.
    """
    if len(found_ids) != len(exact_ids):
        raise ValueError(f"found_ids: got {len(found_ids)} rows; expected {len(exact_ids)}")
    true = exact_ids != -1
    num_true = true.sum(axis=1)
    same = found_ids[:, :, None] == exact_ids[:, None, :]
    hits = (same.any(axis=1) & true).sum(axis=1)
    if found_similarities is not None and exact_similarities is not None:
        worst = np.min(exact_similarities, axis=1, initial=np.inf, where=true)
        ties = found_similarities >= (worst - 1e-6)[:, None]
        hits = hits + (ties & ~same.any(axis=2) & (found_ids != -1)).sum(axis=1)
    recall: Floats = np.minimum(hits, num_true) / np.maximum(num_true, 1)
    return recall
