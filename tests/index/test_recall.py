"""Recall and exact search against naive Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.index import recall
from capibench.index.recall import exact_search, recall_at_k, similarities_of

rows = st.lists(st.integers(0, 12), unique=True, max_size=6)


def padded(ids: list[int], width: int) -> list[int]:
    return ids + [-1] * (width - len(ids))


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=4))
def test_recall_is_the_overlap_of_sets(pairs: list[tuple[list[int], list[int]]]) -> None:
    found = np.array([padded(f, 7) for f, _ in pairs], dtype=np.int64)
    exact = np.array([padded(e, 6) for _, e in pairs], dtype=np.int64)
    expected = [len(set(f) & set(e)) / max(len(e), 1) for f, e in pairs]
    np.testing.assert_allclose(recall_at_k(found, exact), expected)


def test_a_tie_with_the_last_neighbour_counts_as_found() -> None:
    exact, exact_similarities = np.array([[1, 2]]), np.array([[0.9, 0.5]])
    tied, worse = np.array([[1, 3]]), np.array([[1, 4]])
    assert recall_at_k(tied, exact) == [0.5]
    assert recall_at_k(tied, exact, np.array([[0.9, 0.5]]), exact_similarities) == [1]
    assert recall_at_k(worse, exact, np.array([[0.9, 0.4]]), exact_similarities) == [0.5]


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match="found_ids: got 1 rows; expected 2"):
        recall_at_k(np.zeros((1, 2), np.int64), np.zeros((2, 2), np.int64))


@given(n=st.integers(1, 40), m=st.integers(1, 7), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_exact_search_is_a_sort(n: int, m: int, k: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, 5), dtype=np.float32)
    queries = generator.standard_normal((m, 5), dtype=np.float32)
    found = exact_search(vectors, queries, k)
    similarities = similarities_of(vectors, queries, found)
    for query, row, row_similarities in zip(queries, found, similarities, strict=True):
        scored = sorted(
            (
                (-float(np.dot(v.astype(np.float64), query.astype(np.float64))), i)
                for i, v in enumerate(vectors)
            )
        )[:k]
        assert row.tolist() == padded([i for _, i in scored], k)
        np.testing.assert_allclose(row_similarities[: len(scored)], [-s for s, _ in scored])
        assert (row_similarities[len(scored) :] == -np.inf).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((100, 8), dtype=np.float32)
    queries = generator.standard_normal((11, 8), dtype=np.float32)
    ids = generator.permutation(1000)[:100].astype(np.int64)
    whole = exact_search(vectors, queries, 7, ids)
    monkeypatch.setattr(recall, "_QUERIES_PER_BLOCK", 3)
    monkeypatch.setattr(recall, "_VECTORS_PER_BLOCK", 6)
    in_blocks = exact_search(vectors, queries, 7, ids)
    np.testing.assert_array_equal(whole, in_blocks)


def test_ids_are_the_callers_and_pads_stay() -> None:
    vectors = np.eye(2, dtype=np.float32)
    found = exact_search(vectors, vectors[:1], 3, np.array([50, 60]))
    assert found.tolist() == [[50, 60, -1]]
