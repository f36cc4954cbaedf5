"""How good answers are: against exact search, and against the passages known to be right.

An approximate index can be judged twice. Against exact search it loses neighbours; against known
relevance it may lose nothing, since the neighbours lost need not be the right ones. Each figure
keeps its value per query, because a mean hides whom an index fails. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.metric import Floats, Metric
from capibench.index.recall import exact_search, recall_at_k, similarities_of
from capibench.index.tuning.objective import RecallSample

Relevance = Sequence[Collection[int]]  # per query, the ids that are right; at least one


@dataclass(frozen=True)
class Quality:
    """One figure between 0 and 1, of each query and over all."""

    name: str
    per_query: Floats  # [m]
    k: int

    @property
    def mean(self) -> float:
        return float(self.per_query.mean())

    def interval(self) -> tuple[float, float, float]:
        """Mean with a two-sided 95 % interval over queries: (mean, low, high)."""
        return RecallSample(self.per_query, self.k).interval()

    def quantile(self, share: float) -> float:
        """The value that `share` of the queries do not exceed: 0.05 shows the worst ones."""
        return float(np.quantile(self.per_query, share, method="inverted_cdf"))

    def distribution(self) -> dict[float, float]:
        """Value → share of the queries that have it, ascending."""
        values, counts = np.unique(self.per_query, return_counts=True)
        return dict(zip(values.tolist(), (counts / len(self.per_query)).tolist(), strict=True))


def recall_against_exact(
    found_rows: Ids, vectors: Vectors, queries: Vectors, k: int, metric: Metric
) -> Quality:
    """recall@k: share of the exact k nearest that were found; whatever ties with the k-th counts.

    Args:
        found_rows: [m, k'] rows of `vectors`, best first, -1 pads; the first k count.
        vectors: [n, d].
        queries: [m, d]; held-out ones, never database vectors.
        k: how many.
        metric: of the scores.
    """
    found = found_rows[:, :k]
    exact = exact_search(vectors, queries, k, metric=metric)
    recall = recall_at_k(
        found,
        exact,
        similarities_of(vectors, queries, found, metric),
        similarities_of(vectors, queries, exact, metric),
    )
    return Quality("recall_at_k", recall, k)


def against_relevance(found_ids: Ids, relevant: Relevance, k: int) -> tuple[Quality, ...]:
    """hit@k, recall@k, MRR and nDCG@k against the ids known to be right.

    hit@k: whether any of the first k is right. MRR: 1 over the rank of the first right one, 0
    beyond k (Voorhees, "The TREC-8 Question Answering Track Report", 1999). nDCG@k with relevance
    0 or 1: gains discounted by log2(rank + 1), over the greatest possible (Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002).

    Args:
        found_ids: [m, k'] best first, -1 pads; the first k count.
        relevant: the right ids of each query.
        k: how many.

    Raises:
        ValueError: not one set per query, an empty set, or a k that is below 1.
    """
    right = _right(found_ids[:, :k], relevant, k)
    num_right = np.array([len(set(ids)) for ids in relevant], dtype=np.float64)
    discounts = 1.0 / np.log2(np.arange(2, right.shape[1] + 2))
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    reciprocal = right / np.arange(1, right.shape[1] + 1)
    return (
        Quality("hit_at_k", np.asarray(right.any(axis=1), dtype=np.float64), k),
        Quality("recall_at_k", np.asarray(right.sum(axis=1) / num_right), k),
        Quality("mrr", reciprocal.max(axis=1, initial=0.0), k),
        Quality(
            "ndcg_at_k", (right @ discounts) / ideal[np.minimum(num_right, k).astype(int) - 1], k
        ),
    )


def _right(found: Ids, relevant: Relevance, k: int) -> npt.NDArray[np.bool_]:
    if k < 1:
        raise ValueError(f"k: got {k}; expected at least 1")
    if len(found) != len(relevant):
        raise ValueError(f"relevant: got {len(relevant)} sets; expected {len(found)}")
    for i, ids in enumerate(relevant):
        if not len(ids):
            raise ValueError(f"relevant[{i}]: got no ids; expected at least 1")
    rows = [np.isin(row, list(ids)) for row, ids in zip(found, relevant, strict=True)]
    return np.array(rows, dtype=np.bool_).reshape(found.shape)
