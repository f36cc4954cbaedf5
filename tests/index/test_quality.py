"""Quality figures against their definitions, written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.index.metric import Metric
from capibench.index.quality import Quality, against_relevance, recall_against_exact

found_rows = st.lists(st.integers(0, 12), unique=True, min_size=6, max_size=6)
right_ids = st.sets(st.integers(0, 15), min_size=1, max_size=8)


def naive(found: list[int], right: set[int], k: int) -> dict[str, float]:
    first = found[:k]
    ranks = [rank for rank, id_ in enumerate(first, 1) if id_ in right]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(right)) + 1))
    return {
        "hit_at_k": float(bool(ranks)),
        "recall_at_k": len(ranks) / len(right),
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "ndcg_at_k": sum(1 / math.log2(rank + 1) for rank in ranks) / ideal,
    }


@given(st.lists(st.tuples(found_rows, right_ids, st.integers(0, 6)), min_size=1), st.integers(1, 8))
def test_against_relevance(cases: list[tuple[list[int], set[int], int]], k: int) -> None:
    padded = [found[:present] + [-1] * (6 - present) for found, _, present in cases]
    relevant = [right for _, right, _ in cases]
    figures = against_relevance(np.array(padded), relevant, k)
    expected = [naive(found, right, k) for found, right in zip(padded, relevant, strict=True)]
    assert [figure.name for figure in figures] == list(expected[0])
    for figure in figures:
        np.testing.assert_allclose(figure.per_query, [e[figure.name] for e in expected])
        mean, low, high = figure.interval()
        assert mean == figure.mean == pytest.approx(np.mean(figure.per_query))
        assert low <= mean <= high


@given(st.integers(2, 30), st.integers(1, 6), st.sampled_from(Metric), st.integers(0, 99))
def test_recall_against_exact(n: int, m: int, metric: Metric, seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((n, 4)).astype(np.float32)
    queries = generator.standard_normal((m, 4)).astype(np.float32)
    k = int(generator.integers(1, n + 1))
    found = np.stack([generator.permutation(n)[:k] for _ in range(m)])
    shares = []
    for query, row in zip(queries, found, strict=True):
        v, q = vectors.astype(np.float64), query.astype(np.float64)
        score = {
            Metric.IP: v @ q,
            Metric.COSINE: v @ q / np.linalg.norm(v, axis=1),
            Metric.L2: -np.linalg.norm(v - q, axis=1),
        }[metric]
        shares.append(len(set(np.argsort(-score)[:k].tolist()) & set(row.tolist())) / k)
    quality = recall_against_exact(found, vectors, queries, k, metric)
    np.testing.assert_allclose(quality.per_query, shares)


def test_a_tie_with_the_last_is_no_miss() -> None:
    vectors = np.array([[1, 0], [0, 1], [0, 1], [-1, 0]], dtype=np.float32)
    query = np.array([[1, 0.5]], dtype=np.float32)
    for metric in Metric:
        for tied in (1, 2):
            quality = recall_against_exact(np.array([[0, tied]]), vectors, query, 2, metric)
            assert quality.per_query.tolist() == [1.0]
        wrong = recall_against_exact(np.array([[0, 3]]), vectors, query, 2, metric)
        assert wrong.per_query.tolist() == [0.5]


def test_says_whom_it_fails() -> None:
    quality = Quality("recall_at_k", np.array([1.0] * 90 + [0.5] * 6 + [0.0] * 4), 10)
    assert quality.mean == pytest.approx(0.93)
    assert quality.quantile(0.05) == 0.5
    assert quality.quantile(0.02) == 0.0
    assert quality.distribution() == {0.0: 0.04, 0.5: 0.06, 1.0: 0.9}


@pytest.mark.parametrize(
    ("relevant", "k", "message"),
    [
        ([{1}], 1, "relevant: got 1 sets; expected 2"),
        ([{1}, set()], 1, r"relevant\[1\]: got no ids"),
        ([{1}, {2}], 0, "k: got 0; expected at least 1"),
    ],
)
def test_bad_input_is_refused(relevant: list[set[int]], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        against_relevance(np.array([[1, 2], [3, 4]]), relevant, k)
