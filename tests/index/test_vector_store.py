"""The store against a dictionary, under any order of additions, removals and compactions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.metric import Metric, exact_scores
from capibench.index.vector_store import RowSet, VectorStore

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 9)),
        st.tuples(st.just("remove"), st.integers(1, 9)),
        st.tuples(st.just("compact"), st.just(0)),
        st.tuples(st.just("reload"), st.just(0)),
    ),
    max_size=8,
)


@settings(max_examples=60)
@given(steps, st.sampled_from(Metric), st.sampled_from(["float32", "float16"]), st.integers(0, 99))
def test_is_a_dictionary(
    changes: list[tuple[str, int]],
    metric: Metric,
    dtype: Literal["float32", "float16"],
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    draw = lambda m: generator.standard_normal((m, 5), dtype=np.float32)  # noqa: E731
    held = dict(zip(generator.permutation(50)[:8].tolist(), draw(8), strict=True))
    store = VectorStore.of(np.stack(list(held.values())), np.array(list(held)), metric, dtype)
    for change, count in changes:
        if change == "add":
            ids = np.setdiff1d(generator.permutation(60), list(held))[:count]
            vectors = draw(len(ids))
            store.add(vectors, ids)
            held |= dict(zip(ids.tolist(), vectors, strict=True))
        elif change == "remove":
            ids = generator.permutation(list(held)).astype(np.int64)[:count]
            store.remove(ids)
            held = {id_: v for id_, v in held.items() if id_ not in set(ids.tolist())}
        elif change == "compact":
            store = store.compacted()
            assert store.num_rows == store.num_live
        else:
            with tempfile.TemporaryDirectory() as folder:
                store.write_vectors(Path(folder) / "v")
                store.write_ids(Path(folder) / "i")
                store = VectorStore.read(Path(folder) / "v", Path(folder) / "i", metric)
                assert (store.dtype, store.dimension) == (dtype, 5)
    assert store.num_live == len(held)
    asked = np.arange(70)
    rows = store.rows_of(asked)
    assert set(asked[rows >= 0].tolist()) == set(held)
    np.testing.assert_array_equal(store.ids_at(rows), np.where(rows >= 0, asked, -1))
    assert len(np.vstack([b for b in store.blocks() if len(b)] or [draw(0)])) == store.num_rows
    if not held:
        return

    tolerance = 1e-4 if dtype == "float32" else 3e-2
    queries = draw(int(generator.integers(1, 7)))
    ids = np.array(sorted(held))
    truth = exact_scores(queries, np.stack([held[i] for i in ids.tolist()]), metric)
    chosen = generator.permutation(ids)[: len(ids) // 2 + 1]
    for allowed in (None, Allowed(chosen)):
        among = None if allowed is None else allowed.rows_in(store)
        if among is not None:
            assert set(store.ids_at(among.rows).tolist()) == set(chosen.tolist())
        possible = ids if allowed is None else np.sort(chosen)
        k = min(4, len(possible))
        found_rows, scores = store.scan(store.comparable(queries), k, among)
        found = store.ids_at(found_rows)
        columns = np.searchsorted(ids, possible)
        for i in range(len(queries)):
            assert set(found[i].tolist()) <= set(possible.tolist())
            assert len(set(found[i].tolist())) == k
            best = np.sort(truth[i, columns])[::-1][:k]
            np.testing.assert_allclose(scores[i], best, atol=tolerance * max(1, abs(best).max()))
        again, same = store.rescore(
            store.comparable(queries), np.tile(store.rows_of(possible), (len(queries), 1)), k
        )
        np.testing.assert_allclose(same, scores, atol=tolerance * 10)
        assert again.shape == found_rows.shape


def test_candidate_lists_end_early_and_pad() -> None:
    vectors = np.eye(4, dtype=np.float32)
    for store in (
        VectorStore.of(vectors, np.arange(4), Metric.IP, "float32"),
        VectorStore.of(vectors, np.arange(4), Metric.IP, "float16"),
    ):
        candidates = np.array([[2, 0, -1], [-1, -1, -1]])
        rows, _ = store.rescore(vectors[:2], candidates, 3)
        assert rows.tolist() == [[0, 2, -1], [-1, -1, -1]]
        rows, _ = store.scan(vectors[:1], 3, RowSet(np.array([1, 0]), 4))
        assert rows.tolist()[0][0] == 0
        assert rows.tolist()[0][2] == -1


def test_the_callers_array_is_the_callers() -> None:
    vectors = np.eye(3, dtype=np.float32)
    for metric in Metric:
        store = VectorStore.of(vectors, np.arange(3), metric, "float32")
        assert not np.shares_memory(store.in_one_piece, vectors)


def test_a_sample_is_of_live_vectors_and_by_seed() -> None:
    vectors = np.arange(40, dtype=np.float32).reshape(20, 2) + 1
    store = VectorStore.of(vectors, np.arange(20), Metric.L2, "float32")
    store.remove(np.arange(10))
    np.testing.assert_array_equal(store.sample(10, 0), vectors[10:])
    sample = store.sample(4, 3)
    np.testing.assert_array_equal(sample, store.sample(4, 3))
    assert {tuple(row) for row in sample} < {tuple(row) for row in vectors[10:]}


def test_filters_follow_changes() -> None:
    store = VectorStore.of(np.eye(4, dtype=np.float32), np.arange(4), Metric.IP, "float32")
    allowed = Allowed(np.array([3, 1, 1, 9]))
    assert allowed.rows_in(store).rows.tolist() == [1, 3]
    store.remove(np.array([1]))
    assert allowed.rows_in(store).rows.tolist() == [3]
    assert allowed.rows_in(store.compacted()).rows.tolist() == [2]
    store.add(np.eye(4, dtype=np.float32)[:1], np.array([9]))
    assert allowed.rows_in(store).rows.tolist() == [3, 4]
    assert allowed.rows_in(store).bits.tolist() == [0b11000]


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "i.npy", np.arange(4))
    with pytest.raises(DataError, match=r"got int64 ids of shape \(4,\) for vectors of shape"):
        VectorStore.read(tmp_path / "v.npy", tmp_path / "i.npy", Metric.IP)
    with pytest.raises(DataError, match="not a store of vectors"):
        VectorStore.read(tmp_path / "v.npy", tmp_path / "none.npy", Metric.IP)
