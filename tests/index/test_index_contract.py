"""What every index choice must do, and how near each comes to exact search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from choice_files import choices

from capibench.clock import Modeled
from capibench.errors import ConfigError, DataError
from capibench.index.recall import exact_search, recall_at_k, similarities_of

CHOICES = choices("index")
REAL = [name for name in CHOICES if name != "modeled"]
SHAPES = [(n, d) for n in (1, 10, 300) for d in (64, 384)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    faiss.omp_set_num_threads(1)


def unit(n: int, d: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids_of(n: int) -> np.ndarray:
    """Neither dense nor sorted."""
    return np.random.default_rng(7).permutation(np.arange(n, dtype=np.int64) * 3 + 100)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_answers(choice: Callable[..., Any], tmp_path: Path, name: str, n: int, d: int) -> None:
    index, vectors, ids, queries = choice("index", name), unit(n, d, 0), ids_of(n), unit(9, d, 1)
    index.build(vectors, ids)
    found, similarities = index.search(queries, 5)

    assert (found.dtype, similarities.dtype) == (np.int64, np.float32)
    assert found.shape == similarities.shape == (9, 5)
    for row, row_similarities in zip(found, similarities, strict=True):
        present = row[row >= 0]
        assert set(present) <= set(ids)
        assert len(set(present)) == len(present) >= 1
        assert (row[len(present) :] == -1).all()
        assert (np.diff(row_similarities[: len(present)]) <= 0).all()
    again, _ = index.search(queries, 5)
    np.testing.assert_array_equal(found, again)
    for single, expected in zip(queries, found, strict=True):
        np.testing.assert_array_equal(index.search(single[None], 5)[0][0], expected)

    index.save(tmp_path / "index")
    loaded = choice("index", name)
    loaded.load(tmp_path / "index")
    np.testing.assert_array_equal(loaded.search(queries, 5)[0], found)
    np.testing.assert_array_equal(loaded.search(queries, 5)[1], similarities)
    assert loaded.describe() == index.describe()
    assert loaded.build_params() == index.build_params()
    if name != "modeled":
        assert loaded.size_bytes() == index.size_bytes() == (tmp_path / "index").stat().st_size
        assert index.size_bytes() >= vectors.nbytes


@pytest.mark.parametrize("name", CHOICES)
def test_says_what_it_is(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    assert index.build_params()["type"] == index.describe()["type"] == name
    assert isinstance(index, Modeled) == index.modeled
    with pytest.raises(RuntimeError, match="neither built nor loaded"):
        index.search(unit(1, 64, 0), 1)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("num_queries", [1, 3, 40])  # both of FAISS's ways to compare
def test_flat_is_exact(choice: Callable[..., Any], n: int, d: int, num_queries: int) -> None:
    index, vectors, ids, queries = (
        choice("index", "flat"),
        unit(n, d, 0),
        ids_of(n),
        unit(num_queries, d, 1),
    )
    index.build(vectors, ids)
    found, similarities = index.search(queries, 20)
    rows = exact_search(vectors, queries, 20)
    np.testing.assert_array_equal(found, exact_search(vectors, queries, 20, ids))
    present = found >= 0
    true = similarities_of(vectors, queries, rows)
    np.testing.assert_allclose(similarities[present], true[present], atol=1e-6)


@pytest.mark.parametrize("name", ["ivf", "hnsw"])
@pytest.mark.parametrize(("n", "d"), [*SHAPES, (3000, 32)])
def test_full_effort_finds_nearly_all(
    choice: Callable[..., Any], name: str, n: int, d: int
) -> None:
    index, vectors, ids, queries = choice("index", name), unit(n, d, 0), ids_of(n), unit(50, d, 1)
    index.build(vectors, ids)
    ladder = index.effort_ladder()
    assert list(ladder) == sorted(set(ladder))
    index.set_effort(ladder[-1])
    found, _ = index.search(queries, 10)
    recall = recall_at_k(found, exact_search(vectors, queries, 10, ids))
    assert recall.mean() == 1 if name == "ivf" else recall.mean() >= 0.99


def test_ivf_effort_is_nprobe_and_never_rebuilds(choice: Callable[..., Any]) -> None:
    index, vectors, queries = choice("index", "ivf", nlist=64), unit(3000, 32, 0), unit(50, 32, 1)
    index.build(vectors, ids_of(3000))
    exact = exact_search(vectors, queries, 10, ids_of(3000))
    assert index.effort_ladder() == (1, 2, 4, 8, 16, 32, 64)
    recalls = []
    for effort in index.effort_ladder():
        index.set_effort(effort)
        assert index.describe()["nprobe"] == index.effort == effort
        recalls.append(recall_at_k(index.search(queries, 10)[0], exact).mean())
    assert recalls[0] < 0.5 < recalls[-2]
    assert recalls[-1] == 1
    index.set_effort(1000)
    assert index.describe()["nprobe"] == 64


def test_effort_is_the_objects_not_the_files(choice: Callable[..., Any], tmp_path: Path) -> None:
    vectors, queries = unit(3000, 32, 0), unit(50, 32, 1)
    wide = choice("index", "ivf", nlist=64, nprobe=64)
    wide.build(vectors, ids_of(3000))
    wide.save(tmp_path / "index")
    narrow = choice("index", "ivf", nlist=64, nprobe=1)
    narrow.load(tmp_path / "index")
    assert narrow.describe()["nprobe"] == 1
    exact = exact_search(vectors, queries, 10, ids_of(3000))
    assert recall_at_k(narrow.search(queries, 10)[0], exact).mean() < 0.5
    narrow.set_effort(64)
    assert recall_at_k(narrow.search(queries, 10)[0], exact).mean() == 1


@pytest.mark.parametrize(
    ("n", "nlist"), [(1, 1), (10, 1), (39, 1), (78, 2), (300, 7), (10_000, 256), (47_152, 869)]
)
def test_ivf_auto_nlist(n: int, nlist: int) -> None:
    from capibench.index.ivf import auto_nlist

    assert auto_nlist(n) == nlist


def test_same_seed_same_index(choice: Callable[..., Any]) -> None:
    vectors, queries = unit(1000, 32, 0), unit(50, 32, 1)
    for name in REAL:
        answers = []
        for _ in range(2):
            index = choice("index", name)
            index.build(vectors, ids_of(1000))
            answers.append(index.search(queries, 10)[0])
        np.testing.assert_array_equal(*answers)


def with_nan(vectors: np.ndarray) -> np.ndarray:
    vectors[1, 1] = np.nan
    return vectors


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (with_nan(unit(4, 8, 0)), np.arange(4), "vectors: got NaN or infinity"),
        (unit(4, 8, 0).astype(np.float64), np.arange(4), "vectors: got float64 of shape"),
        (unit(4, 8, 0)[0], np.arange(4), "vectors: got float32 of shape"),
        (unit(4, 8, 0)[:0], np.arange(0), "vectors: got none"),
        (unit(4, 8, 0), np.array([1, 2, 2, 3]), "ids: got 2 twice"),
        (unit(4, 8, 0), np.arange(3), "ids: got int64 of shape"),
        (unit(4, 8, 0), np.arange(4, dtype=np.int32), "ids: got int32 of shape"),
        (unit(4, 8, 0), np.arange(-1, 3), "ids: got -1; expected at least 0"),
    ],
)
def test_bad_input_is_refused(
    choice: Callable[..., Any], name: str, vectors: np.ndarray, ids: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choice("index", name).build(vectors, ids)


@pytest.mark.parametrize("name", REAL)
def test_bad_queries_are_refused(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    index.build(unit(10, 8, 0), ids_of(10))
    with pytest.raises(ValueError, match="queries: got dimension 9; expected 8"):
        index.search(unit(1, 9, 0), 1)
    with pytest.raises(ValueError, match="queries: got NaN"):
        index.search(with_nan(unit(2, 8, 0)), 1)
    with pytest.raises(ValueError, match="k: got 0"):
        index.search(unit(1, 8, 0), 0)


@pytest.mark.parametrize("name", CHOICES)
def test_files_of_others_are_refused(choice: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("not an index")
    with pytest.raises(DataError, match="text: not an index of type"):
        choice("index", name).load(tmp_path / "text")
    for other in set(CHOICES) - {name}:
        index = choice("index", other)
        index.build(unit(300, 8, 0), ids_of(300))
        index.save(tmp_path / other)
        with pytest.raises(DataError, match="not an index of type"):
            choice("index", name).load(tmp_path / other)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flat", {"max_batch_size": 0}, "index.max_batch_size: got 0; expected at least 1"),
        ("ivf", {"nprobe": 0}, "index.nprobe: got 0; expected at least 1"),
        ("ivf", {"nlist": 0}, "index.nlist: got 0; expected at least 1"),
        ("ivf", {"seed": -1}, "index.seed: got -1; expected at least 0"),
        ("hnsw", {"num_links": 1}, "index.num_links: got 1; expected at least 2"),
        ("hnsw", {"ef_search": 0}, "index.ef_search: got 0; expected at least 1"),
    ],
)
def test_bad_values_are_refused(
    choice: Callable[..., Any], name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choice("index", name, **changes)


def test_more_lists_than_vectors(choice: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="nlist: got 11; expected at most the number of vectors"):
        choice("index", "ivf", nlist=11).build(unit(10, 8, 0), ids_of(10))


@pytest.mark.parametrize("name", CHOICES)
def test_no_effort_where_there_is_none(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    with pytest.raises(ValueError, match="effort: got 0"):
        index.set_effort(0)
    has_none = name in ("flat", "modeled")
    assert (index.effort is None) == (index.effort_ladder() == ()) == has_none
