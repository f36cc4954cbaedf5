"""How two rankings of the same passages become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.metric import Floats
from capibench.index.quality import Quality, Relevance, against_relevance

FusionRule = Literal["weighted", "reciprocal_rank"]
WEIGHTS = tuple(i / 20 for i in range(21))  # of the dense side, tried by `best_weight`


@dataclass(frozen=True)
class Candidates:
    """What both sides say about one query's candidates, the best dense score first."""

    ids: Ids  # [c]
    dense: Vectors  # [c] scores
    lexical: Vectors  # [c] BM25, 0: no word shared


@dataclass(frozen=True)
class WeightChoice:
    """The weight with the best mean nDCG@k, and what every weight reached."""

    weight: float
    ndcg: Quality  # at that weight, of each query
    mean_ndcg: dict[float, float]  # weight → mean; 0 is BM25 alone, 1 the dense side alone


def fused_scores(
    candidates: Candidates, weight: float, rule: FusionRule, rank_constant: int
) -> Floats:
    """One score [c] per candidate, the greater the better.

    weighted: both scores brought to 0..1 over the candidates, then averaged with `weight` on the
    dense one (Bruch et al., "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS 2023).
    reciprocal_rank: weighted sum of 1 / (rank_constant + rank) (Cormack et al., "Reciprocal Rank
    Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009); who shares
    no word has no lexical rank.
    """
    dense, lexical = candidates.dense.astype(np.float64), candidates.lexical.astype(np.float64)
    if rule == "weighted":
        spread = dense.max() - dense.min()
        near = (dense - dense.min()) / spread if spread > 0 else np.ones_like(dense)
        worded = lexical / lexical.max() if lexical.max() > 0 else lexical
        return weight * near + (1 - weight) * worded
    dense_ranks = np.arange(1, len(dense) + 1)
    lexical_ranks = np.empty(len(lexical))
    lexical_ranks[np.argsort(-lexical, kind="stable")] = np.arange(1, len(lexical) + 1)
    by_words = np.where(lexical > 0, 1.0 / (rank_constant + lexical_ranks), 0.0)
    scores: Floats = weight / (rank_constant + dense_ranks) + (1 - weight) * by_words
    return scores


def best(candidates: Candidates, scores: Floats, k: int) -> tuple[Ids, Floats]:
    """Ids and scores [k] of the best candidates; equal ones in dense order; -1 pads."""
    order = np.argsort(-scores, kind="stable")[:k]
    missing = k - len(order)
    ids = np.pad(candidates.ids[order], (0, missing), constant_values=-1)
    return ids, np.pad(scores[order], (0, missing), constant_values=-np.inf)


def best_weight(
    queries: Sequence[Candidates],
    relevant: Relevance,
    k: int,
    rule: FusionRule,
    rank_constant: int,
) -> WeightChoice:
    """The weight of the best mean nDCG@k; of equally good ones that nearest to a half.

    Args:
        queries: what both sides say about each training query.
        relevant: the ids known to be right, of each.
        k: results wanted.
        rule: of the fusion.
        rank_constant: of the reciprocal rank.

    Raises:
        ValueError: no queries, or not one set of right ids for each.
    """
    if not queries:
        raise ValueError("queries: got none to choose a weight by; expected at least 1")
    measured = {}
    for weight in WEIGHTS:
        found = np.stack(
            [best(c, fused_scores(c, weight, rule, rank_constant), k)[0] for c in queries]
        )
        measured[weight] = next(
            q for q in against_relevance(found, relevant, k) if q.name == "ndcg_at_k"
        )
    chosen = max(WEIGHTS, key=lambda w: (round(measured[w].mean, 12), -abs(w - 0.5)))
    means = {weight: quality.mean for weight, quality in measured.items()}
    return WeightChoice(chosen, measured[chosen], means)
