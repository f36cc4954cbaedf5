"""Exact neighbours and recall against them, quickly enough to be asked for often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.exact_scan import nearest, use_blas_for_batches
from capibench.index.index import Ids
from capibench.index.metric import Floats, Metric, comparable
from capibench.index.recall import recall_at_k, similarities_of

_MARGIN = 16  # candidates beyond k that are scored in float64


@dataclass(frozen=True, eq=False)
class Truth:
    """The k nearest of `vectors` to each of `queries`, in float64, ties by row.

    A float32 scan names k + 16 candidates, which are scored and sorted in float64: what float32
    could hide of the k nearest would have to lie 17 ranks off.
    """

    vectors: Vectors  # [n, d]
    queries: Vectors  # [m, d]
    metric: Metric
    rows: Ids  # [m, k]
    similarities: Floats  # [m, k]

    @classmethod
    def of(cls, vectors: Vectors, queries: Vectors, k: int, metric: Metric) -> Truth:
        """Raises: ValueError for what a metric cannot compare, or a k beyond 1 to n."""
        if not 1 <= k <= len(vectors):
            raise ValueError(f"k: got {k}; expected 1 to the number of vectors, {len(vectors)}")
        use_blas_for_batches(vectors.shape[1])
        num_candidates = min(k + _MARGIN, len(vectors))
        rows, _ = nearest(
            comparable("queries", queries, metric),
            comparable("vectors", vectors, metric),
            num_candidates,
            metric,
        )
        similarities = similarities_of(vectors, queries, rows, metric)
        order = np.lexsort((rows, -similarities), axis=1)[:, :k]
        return cls(
            vectors,
            queries,
            metric,
            np.take_along_axis(rows, order, axis=1),
            np.take_along_axis(similarities, order, axis=1),
        )

    def part(self, begin: int, end: int) -> Truth:
        """The truth about queries `begin` to `end` only."""
        queries = slice(begin, end)
        return Truth(
            self.vectors,
            self.queries[queries],
            self.metric,
            self.rows[queries],
            self.similarities[queries],
        )

    def recall_of(self, found: Ids) -> Floats:
        """recall@k of `found` rows [m, k'], tie-safe, [m]. Only queries that miss an id are looked
        at closely."""
        recall = recall_at_k(found, self.rows)
        missed = np.flatnonzero(recall < 1)
        if len(missed):
            recall[missed] = recall_at_k(
                found[missed],
                self.rows[missed],
                similarities_of(self.vectors, self.queries[missed], found[missed], self.metric),
                self.similarities[missed],
            )
        return recall
