"""What every index that stores vectors must do, checked against a dictionary and plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capibench.index.allowed import Allowed
from capibench.index.metric import Metric


def drawn(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def ids_of(n: int) -> np.ndarray:
    """Neither dense nor sorted."""
    return np.random.default_rng(7).permutation(np.arange(n, dtype=np.int64) * 3 + 100)


class Reference:
    """Exact search in float64, by definition of the metric and a sort."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray, metric: Metric) -> None:
        self.vectors, self.ids, self.metric = vectors, ids, metric

    def add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self.vectors = np.vstack([self.vectors, vectors])
        self.ids = np.concatenate([self.ids, ids])

    def remove(self, ids: np.ndarray) -> None:
        kept = ~np.isin(self.ids, ids)
        self.vectors, self.ids = self.vectors[kept], self.ids[kept]

    def scores(self, query: np.ndarray) -> dict[int, float]:
        q, v = query.astype(np.float64), self.vectors.astype(np.float64)
        if self.metric is Metric.L2:
            scores = -((v - q) ** 2).sum(axis=1)
        elif self.metric is Metric.IP:
            scores = (v * q).sum(axis=1)
        else:
            scores = (v * q).sum(axis=1) / np.sqrt((v**2).sum(axis=1) * (q**2).sum())
        return dict(zip(self.ids.tolist(), scores.tolist(), strict=True))


def check_answers(
    index: Any, reference: Reference, queries: np.ndarray, k: int, allowed: set[int] | None = None
) -> float:
    """Check all that must hold of any answer; returns its recall."""
    filtered = None if allowed is None else Allowed(np.array(sorted(allowed), dtype=np.int64))
    found, scores = index.search(queries, k, filtered)
    assert (found.dtype, scores.dtype) == (np.int64, np.float32)
    assert found.shape == scores.shape == (len(queries), k)
    hits = wanted = 0
    for query, row, row_scores in zip(queries, found.tolist(), scores.tolist(), strict=True):
        true_scores = reference.scores(query)
        candidates = true_scores.keys() if allowed is None else true_scores.keys() & allowed
        exact = sorted(candidates, key=lambda id_: (-true_scores[id_], id_))[:k]
        present = row[: len(exact)]
        assert row[len(exact) :] == [-1] * (k - len(exact))
        assert row_scores[len(exact) :] == [-np.inf] * (k - len(exact))
        assert len(set(present)) == len(present)
        assert set(present) <= candidates
        true = [true_scores[id_] for id_ in present]
        tolerance = 2e-3 if index.vectors_dtype == "float16" else 2e-5
        scale = max(1.0, *(abs(score) for score in true)) if true else 1.0
        np.testing.assert_allclose(row_scores[: len(exact)], true, atol=tolerance * scale)
        assert row_scores == sorted(row_scores, reverse=True)
        hits += len(set(present) & set(exact))
        wanted += len(exact)
    return hits / max(wanted, 1)


def at_full_effort(index: Any) -> None:
    index.set_query_params({name: ladder[-1] for name, ladder in index.query_ladders().items()})


def check_contract(make: Callable[[], Any], n: int, d: int, folder: Path) -> None:
    """Build, search, save, load, add, delete and filter n vectors of d dimensions."""
    index = make()
    vectors, ids, queries = drawn(n, d, 0), ids_of(n), drawn(6, d, 1)
    index.build(vectors, ids)
    reference = Reference(vectors, ids, index.metric)
    k = min(10, n)
    check_answers(index, reference, queries, k)
    at_full_effort(index)
    recall = check_answers(index, reference, queries, k)
    exact = not index.query_params()
    assert recall >= (1.0 if exact else 0.9)

    index.save(folder / "index")
    loaded = make()
    loaded.load(folder / "index")
    at_full_effort(loaded)
    for before, after in zip(index.search(queries, k), loaded.search(queries, k), strict=True):
        np.testing.assert_array_equal(before, after)
    assert loaded.describe() == index.describe()
    assert loaded.size_bytes() == index.size_bytes() >= vectors.size * 2

    # Further vectors near the queries must be found under their ids.
    more, more_ids = queries + drawn(6, d, 2) * 1e-3, np.arange(6, dtype=np.int64) * 3 + 1
    loaded.add(more, more_ids)
    reference.add(more, more_ids)
    at_full_effort(loaded)
    found, _ = loaded.search(queries, k)
    assert (found[:, 0] == more_ids).all() or index.metric is Metric.IP
    check_answers(loaded, reference, queries, k)

    allowed = set(np.sort(reference.ids)[::2].tolist())
    assert check_answers(loaded, reference, queries, k, allowed) >= (1.0 if exact else 0.9)
    few = set(np.sort(reference.ids)[:2].tolist())
    assert check_answers(loaded, reference, queries, k, few | {-5, 10**9}) == 1.0
    assert check_answers(loaded, reference, queries, k, {10**9}) == 0.0

    removed = np.concatenate([more_ids[:3], ids[: n // 4]])
    loaded.remove(removed)
    reference.remove(removed)
    k = min(k, len(reference.ids))
    check_answers(loaded, reference, queries, k)
    check_answers(loaded, reference, queries, k, allowed)
    loaded.save(folder / "index")
    again = make()
    again.load(folder / "index")
    check_answers(again, reference, queries, k, allowed)
    assert again.num_vectors == len(reference.ids)
