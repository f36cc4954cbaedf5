"""Several indexes, the same vectors, the same queries."""

from __future__ import annotations

from collections.abc import Mapping

import faiss
import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.optimizer.exam import Contents, Exam, figures, not_among
from capibench.index.optimizer.kept import Kept
from capibench.index.optimizer.results import Best, IndexComparison
from capibench.index.tuning.preference import GOODS, Limits, Preference, decide, front_of

_NO_LIMITS = Limits(0.0, 0.5, None, None, None)


def compare(
    opened: Mapping[str, Kept], test_vectors: Vectors, num_queries: int | None
) -> IndexComparison:
    """See `RAGIndexOptimizer.compare_indices`."""
    (first_name, first), *others = opened.items()
    contents, metric = Contents.of(first.index), first.index.metric
    for name, kept in others:
        if kept.index.metric is not metric or not _same(Contents.of(kept.index), contents):
            raise ValueError(
                f"names: got {first_name} and {name}, which hold different vectors; expected "
                "indexes of the same ones"
            )
    if not first.index.num_vectors:
        raise ValueError(f"names: got {first_name}, which is empty; expected vectors to compare")
    first.index.store.comparable(test_vectors, "test_vectors")
    outside = not_among(test_vectors, contents, metric)
    queries = test_vectors[outside][:num_queries]
    if not len(queries):
        raise ValueError(
            f"test_vectors: got {len(test_vectors)}, all of them in the index; expected queries"
        )
    k = min(first.provenance.k, len(contents.ids))
    exam = Exam.of(contents, queries, k, metric)
    indexes = {name: kept.index for name, kept in opened.items()}
    points = exam.points(indexes, seed=0)
    best = {}
    for good in ("recall", "latency", "memory"):
        weights = {name: float(name == good) for name in GOODS}
        verdict = decide(list(points.values()), Preference(_NO_LIMITS, weights))
        best[good] = Best(verdict.chosen.arm.name, tuple(p.arm.name for p in verdict.ties))
    return IndexComparison(
        figures={name: figures(point, indexes[name]) for name, point in points.items()},
        pareto_front=tuple(p.arm.name for p in front_of(list(points.values()))),
        best=best,
        k=k,
        num_queries=len(queries),
        num_left_out=len(test_vectors) - len(outside),
        batch_size=first.index.max_batch_size,
        num_threads=faiss.omp_get_max_threads(),
    )


def _same(one: Contents, other: Contents) -> bool:
    if one.vectors.shape != other.vectors.shape:
        return False
    left, right = np.argsort(one.ids), np.argsort(other.ids)
    return bool(
        np.array_equal(one.ids[left], other.ids[right])
        and np.array_equal(one.vectors[left], other.vectors[right])
    )
