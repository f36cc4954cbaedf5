"""What every index choice must do, and how near each comes to exact search."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from choice_files import choices
from index_contract import (
    Reference,
    at_full_effort,
    check_answers,
    check_contract,
    drawn,
    ids_of,
)

from capibench.clock import Modeled
from capibench.errors import ConfigError, DataError, MissingExtra
from capibench.index.allowed import Allowed
from capibench.index.metric import Metric
from capibench.index.recall import exact_search, recall_at_k, similarities_of
from capibench.index.stored_index import load_index
from capibench.index.vector_store import VectorStore

EXTRAS = {"hnswlib", "usearch"}
MISSING = [name for name in sorted(EXTRAS) if importlib.util.find_spec(name) is None]
CHOICES = [name for name in choices("index") if name not in MISSING]
STORED = [name for name in CHOICES if name not in ("modeled", "hybrid_text")]
APPROXIMATE = [name for name in STORED if name != "flat"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    faiss.omp_set_num_threads(1)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    ("n", "d"),
    [(1, 20), (10, 20), (100, 20), (900, 20), (5000, 20)] + [(10, d) for d in (64, 100, 384, 768)],
)
def test_contract(choice: Callable[..., Any], tmp_path: Path, name: str, n: int, d: int) -> None:
    check_contract(lambda: choice("index", name), n, d, tmp_path)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    ("metric", "dtype"), [("ip", "float32"), ("l2", "float32"), ("l2", "float16")]
)
def test_contract_of_metrics_and_halves(
    choice: Callable[..., Any], tmp_path: Path, name: str, metric: str, dtype: str
) -> None:
    check_contract(
        lambda: choice("index", name, metric=metric, vectors_dtype=dtype), 1500, 12, tmp_path
    )


@pytest.mark.parametrize("name", MISSING)
def test_missing_library_is_named(choice: Callable[..., Any], name: str) -> None:
    with pytest.raises(MissingExtra, match=rf"'{name}'.*pip install 'capibench\[graphs\]'"):
        choice("index", name)


@pytest.mark.parametrize("name", CHOICES)
def test_says_what_it_is(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    assert index.build_params()["type"] == index.describe()["type"]
    assert isinstance(index, Modeled) == index.modeled
    with pytest.raises(RuntimeError, match="neither built nor loaded"):
        index.search(drawn(1, 64, 0), 1)


@pytest.mark.parametrize(("n", "d"), [(1, 64), (10, 384), (300, 100)])
@pytest.mark.parametrize("num_queries", [1, 3, 40])  # both of FAISS's ways to compare
def test_flat_is_exact(choice: Callable[..., Any], n: int, d: int, num_queries: int) -> None:
    index, vectors, ids, queries = (
        choice("index", "flat", metric="ip"),
        drawn(n, d, 0),
        ids_of(n),
        drawn(num_queries, d, 1),
    )
    index.build(vectors, ids)
    k = min(20, n)
    found, scores = index.search(queries, k)
    np.testing.assert_array_equal(found, exact_search(vectors, queries, k, ids))
    rows = exact_search(vectors, queries, k)
    np.testing.assert_allclose(scores, similarities_of(vectors, queries, rows), atol=1e-4)


@pytest.mark.parametrize("name", STORED)
def test_batched_and_alone_the_same(choice: Callable[..., Any], name: str) -> None:
    index, vectors, queries = choice("index", name), drawn(2000, 20, 0), drawn(20, 20, 1)
    index.build(vectors, ids_of(2000))
    together, scores = index.search(queries, 5)
    for query, row, row_scores in zip(queries, together, scores, strict=True):
        alone, alone_scores = index.search(query[None], 5)
        np.testing.assert_array_equal(alone[0], row)
        np.testing.assert_allclose(alone_scores[0], row_scores, atol=1e-5)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_effort_buys_recall_and_never_rebuilds(choice: Callable[..., Any], name: str) -> None:
    index, vectors, queries = choice("index", name), drawn(3000, 32, 0), drawn(50, 32, 1)
    index.build(vectors, ids_of(3000))
    exact = exact_search(vectors, queries, 10, ids_of(3000), Metric.COSINE)
    cost = index.build_cost
    assert cost.train_s >= 0
    assert cost.add_s > 0
    recalls = {}
    for end in (0, -1):
        for param, ladder in index.query_ladders().items():
            assert list(ladder) == sorted(set(ladder))
            index.set_query_params({param: ladder[end]})
            assert index.describe()[param] == index.query_params()[param] == ladder[end]
        recalls[end] = recall_at_k(index.search(queries, 10)[0], exact).mean()
    assert recalls[0] < recalls[-1] or recalls[0] > 0.99
    assert recalls[-1] >= 0.97
    assert index.build_cost is cost
    first = next(iter(index.query_params()))
    index.set_effort(3)
    assert index.effort == index.query_params()[first] == 3
    with pytest.raises(ValueError, match="effort_x: got 1; expected one of"):
        index.set_query_params({"effort_x": 1})
    with pytest.raises(ValueError, match="got 0"):
        index.set_effort(0)


def test_effort_is_the_objects_not_the_files(choice: Callable[..., Any], tmp_path: Path) -> None:
    vectors, queries = drawn(3000, 32, 0), drawn(50, 32, 1)
    wide = choice("index", "ivf", nlist=64, nprobe=64)
    wide.build(vectors, ids_of(3000))
    wide.save(tmp_path / "index")
    narrow = choice("index", "ivf", nlist=64, nprobe=1)
    narrow.load(tmp_path / "index")
    assert narrow.describe()["nprobe"] == 1
    exact = exact_search(vectors, queries, 10, ids_of(3000), Metric.COSINE)
    assert recall_at_k(narrow.search(queries, 10)[0], exact).mean() < 0.5
    narrow.set_effort(64)
    assert recall_at_k(narrow.search(queries, 10)[0], exact).mean() == 1


@pytest.mark.parametrize("name", ["flat", "modeled"])
def test_no_effort_where_there_is_none(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    with pytest.raises(ValueError, match="effort: got 3"):
        index.set_effort(3)
    assert index.effort is None
    assert index.effort_ladder() == ()


@pytest.mark.parametrize(
    ("n", "nlist"), [(1, 1), (10, 1), (39, 1), (78, 2), (300, 7), (10_000, 256), (47_152, 869)]
)
def test_ivf_auto_nlist(n: int, nlist: int) -> None:
    from capibench.index.faiss_index import auto_nlist

    assert auto_nlist(n, 4) == nlist
    assert auto_nlist(n, 1) <= nlist


@pytest.mark.parametrize("name", STORED)
def test_same_seed_same_index(choice: Callable[..., Any], name: str) -> None:
    vectors, queries = drawn(1500, 16, 0), drawn(50, 16, 1)
    answers = []
    for _ in range(2):
        index = choice("index", name)
        index.build(vectors, ids_of(1500))
        answers.append(index.search(queries, 10)[0])
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("name", [name for name in APPROXIMATE if name != "pq_8bit"])
def test_grows_from_one_vector(choice: Callable[..., Any], name: str) -> None:
    """What was learnt from one vector does not stay: recall is that of an index built at once."""
    vectors, queries, ids = drawn(2000, 16, 0), drawn(20, 16, 1), ids_of(2000)
    index = choice("index", name)
    index.build(vectors[:1], ids[:1])
    for begin, end in ((1, 2), (2, 40), (40, 700), (700, 2000)):
        index.add(vectors[begin:end], ids[begin:end])
    at_full_effort(index)
    assert check_answers(index, Reference(vectors, ids, Metric.COSINE), queries, 10) >= 0.97


@pytest.mark.parametrize("name", STORED)
def test_empties_and_fills_again(choice: Callable[..., Any], tmp_path: Path, name: str) -> None:
    vectors, ids = drawn(30, 8, 0), ids_of(30)
    index = choice("index", name)
    index.build(vectors, ids)
    index.remove(ids)
    assert index.num_vectors == 0
    with pytest.raises(ValueError, match="k: got 1; expected at most the number of vectors, 0"):
        index.search(drawn(1, 8, 1), 1)
    index.save(tmp_path / "index")
    index = load_index(tmp_path / "index")
    index.add(vectors[:5], ids[:5])
    check_answers(index, Reference(vectors[:5], ids[:5], Metric.COSINE), drawn(3, 8, 1), 5)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_removed_neighbours_do_not_hide_others(choice: Callable[..., Any], name: str) -> None:
    """All near a query are removed, more than it asks for, and none is compacted away."""
    near = np.float32([[1, 0, 0, 0, 0, 0, 0, 0]]) + drawn(200, 8, 0) * 1e-2
    far = np.float32([[-1, 0, 0, 0, 0, 0, 0, 0]]) + drawn(1500, 8, 1) * 0.5
    vectors, ids = np.vstack([near, far]), ids_of(1700)
    index = choice("index", name, max_deleted_share=0.9)
    index.build(vectors, ids)
    index.remove(ids[:200])
    assert index.store.num_rows == 1700
    reference = Reference(far, ids[200:], Metric.COSINE)
    check_answers(index, reference, near[:5], 10)
    index.rebuild()
    assert index.store.num_rows == 1500
    check_answers(index, reference, near[:5], 10)


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_filters_lose_no_recall(choice: Callable[..., Any], name: str, share: float) -> None:
    n = 4000
    vectors, ids, queries = drawn(n, 16, 0), ids_of(n), drawn(20, 16, 1)
    index = choice("index", name, exact_filter_share=0.05)
    index.build(vectors, ids)
    at_full_effort(index)
    allowed = set(np.random.default_rng(3).choice(ids, int(n * share), replace=False).tolist())
    recall = check_answers(index, Reference(vectors, ids, Metric.COSINE), queries, 10, allowed)
    assert recall >= 0.95


@pytest.mark.parametrize("name", ["hnsw", "ivf", "pq", "hybrid"])
def test_candidates_share_one_store(choice: Callable[..., Any], name: str) -> None:
    vectors, ids, queries = drawn(500, 16, 0), ids_of(500), drawn(5, 16, 1)
    store = VectorStore.of(vectors, ids, Metric.COSINE, "float32")
    index, alone = choice("index", name), choice("index", name)
    index.build_over(store)
    alone.build(vectors, ids)
    assert index.store is store
    np.testing.assert_array_equal(index.search(queries, 5)[0], alone.search(queries, 5)[0])
    with pytest.raises(ValueError, match="store: got cosine, float32; expected l2, float32"):
        choice("index", name, metric="l2").build_over(store)


def test_graph_does_not_hold_the_vectors_twice(choice: Callable[..., Any], tmp_path: Path) -> None:
    index, vectors = choice("index", "hnsw", num_links=4), drawn(500, 256, 0)
    index.build(vectors, ids_of(500))
    assert index.structure_bytes() < vectors.nbytes / 4
    index.save(tmp_path / "index")
    on_disk = sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    assert vectors.nbytes < on_disk < 1.5 * vectors.nbytes
    index.add(drawn(1, 256, 1), np.array([7]))
    assert index.structure_bytes() > vectors.nbytes


def with_nan(vectors: np.ndarray) -> np.ndarray:
    vectors[1, 1] = np.nan
    return vectors


def with_zero(vectors: np.ndarray) -> np.ndarray:
    vectors[2] = 0
    return vectors


BAD = [
    (with_nan(drawn(4, 8, 0)), np.arange(4), "vectors: got NaN or infinity"),
    (with_zero(drawn(4, 8, 0)), np.arange(4), "vectors: got a zero vector in row 2"),
    (drawn(4, 8, 0).astype(np.float64), np.arange(4), "vectors: got float64 of shape"),
    (drawn(4, 8, 0)[0], np.arange(4), "vectors: got float32 of shape"),
    (drawn(4, 8, 0).tolist(), np.arange(4), "vectors: got list; expected a float32 array"),
    (drawn(4, 8, 0), [0, 1, 2, 3], "ids: got list; expected an int64 array"),
    (drawn(4, 8, 0), np.array([1, 2, 2, 3]), "ids: got 2 twice"),
    (drawn(4, 8, 0), np.arange(3), "ids: got int64 of shape"),
    (drawn(4, 8, 0), np.arange(4, dtype=np.int32), "ids: got int32 of shape"),
    (drawn(4, 8, 0), np.arange(-1, 3), "ids: got -1; expected at least 0"),
]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [*BAD, (drawn(4, 8, 0)[:0], np.arange(0), "vectors: got none")],
)
def test_bad_input_is_refused(
    choice: Callable[..., Any], name: str, vectors: np.ndarray, ids: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choice("index", name).build(vectors, ids)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        *BAD,
        (drawn(4, 9, 0), np.arange(4), "vectors: got dimension 9; expected 8"),
        (drawn(2, 8, 0), np.array([5, 100]), "ids: got 100, which is in the index already"),
    ],
)
def test_bad_additions_change_nothing(
    choice: Callable[..., Any], name: str, vectors: np.ndarray, ids: np.ndarray, message: str
) -> None:
    index, queries = choice("index", name), drawn(3, 8, 1)
    index.build(drawn(10, 8, 0), ids_of(10))
    before = index.search(queries, 10)
    with pytest.raises(ValueError, match=message):
        index.add(vectors, ids)
    with pytest.raises(ValueError, match="ids: got 5, which is not in the index"):
        index.remove(np.array([100, 5]))
    with pytest.raises(ValueError, match="ids: got 100 twice"):
        index.remove(np.array([100, 100]))
    for old, new in zip(before, index.search(queries, 10), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", STORED)
def test_bad_queries_are_refused(choice: Callable[..., Any], name: str) -> None:
    index = choice("index", name)
    index.build(drawn(10, 8, 0), ids_of(10))
    with pytest.raises(ValueError, match="queries: got dimension 9; expected 8"):
        index.search(drawn(1, 9, 0), 1)
    with pytest.raises(ValueError, match="queries: got float64"):
        index.search(drawn(1, 8, 0).astype(np.float64), 1)
    with pytest.raises(ValueError, match="queries: got NaN"):
        index.search(with_nan(drawn(2, 8, 0)), 1)
    with pytest.raises(ValueError, match="queries: got a zero vector in row 2"):
        index.search(with_zero(drawn(3, 8, 0)), 1)
    with pytest.raises(ValueError, match="queries: got list; expected a float32 array"):
        index.search(drawn(1, 8, 0).tolist(), 1)
    with pytest.raises(ValueError, match="ids: got list; expected an int64 array"):
        index.remove([100])
    with pytest.raises(ValueError, match="k: got 0"):
        index.search(drawn(1, 8, 0), 0)
    for k in (2.5, "3", True, None):
        with pytest.raises(ValueError, match=f"k: got {k!r}; expected a whole number"):
            index.search(drawn(1, 8, 0), k)
    assert index.search(drawn(1, 8, 0), np.int32(2))[0].shape == (1, 2)
    with pytest.raises(ValueError, match="k: got 11; expected at most the number of vectors, 10"):
        index.search(drawn(1, 8, 0), 11)
    with pytest.raises(ValueError, match="allowed: got int32 of shape"):
        index.search(drawn(1, 8, 0), 1, Allowed(np.arange(3, dtype=np.int32)))


@pytest.mark.parametrize("name", ["flat", "ivf", "modeled", "hybrid_text"])
def test_files_of_others_are_refused(choice: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("not an index")
    with pytest.raises(DataError, match="text: not a saved index: it is a file"):
        choice("index", name).load(tmp_path / "text")
    with pytest.raises(DataError, match="nowhere: not a saved index: no such directory"):
        choice("index", name).load(tmp_path / "nowhere")
    for other in {"flat", "hnsw", "pq", "modeled"} - {name}:
        index = choice("index", other)
        index.build(drawn(300, 8, 0), ids_of(300))
        index.save(tmp_path / other)
        with pytest.raises(DataError, match="not an index of type"):
            choice("index", name).load(tmp_path / other)


def test_other_build_parameters_are_refused(choice: Callable[..., Any], tmp_path: Path) -> None:
    index = choice("index", "ivf", nlist=4)
    index.build(drawn(300, 8, 0), ids_of(300))
    index.save(tmp_path / "index")
    with pytest.raises(DataError, match="got nlist=4; expected 5"):
        choice("index", "ivf", nlist=5).load(tmp_path / "index")
    with pytest.raises(DataError, match="got metric=cosine; expected l2"):
        choice("index", "ivf", nlist=4, metric="l2").load(tmp_path / "index")


@pytest.mark.parametrize("name", STORED)
def test_a_directory_knows_what_it_holds(
    choice: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    index, queries = choice("index", name), drawn(5, 8, 1)
    index.build(drawn(100, 8, 0), ids_of(100))
    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    assert type(loaded) is type(index)
    assert loaded.build_params() == index.build_params()
    assert loaded.build_cost == index.build_cost
    np.testing.assert_array_equal(loaded.search(queries, 5)[0], index.search(queries, 5)[0])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("flat", {"max_batch_size": 0}, "index.max_batch_size: got 0; expected at least 1"),
        ("flat", {"max_deleted_share": 1.0}, "index.max_deleted_share: got 1.0; expected 0 or"),
        ("ivf", {"seed": 2**31}, "index.seed: got 2147483648; expected 0 to 2147483647"),
        ("hnsw", {"num_links": 10**6}, "index.num_links: got 1000000; expected 2 to 10000"),
        ("hybrid_text", {"k1": float("inf")}, "index.k1: got inf; expected a finite number"),
        ("flat", {"metric": "manhattan"}, "index.metric: got 'manhattan'; expected one of cosine"),
        ("flat", {"vectors_dtype": "int8"}, "index.vectors_dtype: got 'int8'; expected one of"),
        ("ivf", {"exact_filter_share": 2.0}, "index.exact_filter_share: got 2.0; expected 0 to 1"),
        ("ivf", {"nprobe": 0}, "index.nprobe: got 0; expected at least 1"),
        ("ivf", {"nlist": 0}, "index.nlist: got 0; expected at least 1"),
        ("ivf", {"seed": -1}, "index.seed: got -1; expected at least 0"),
        ("hnsw", {"num_links": 1}, "index.num_links: got 1; expected 2 to 10000"),
        ("hnsw", {"ef_search": 0}, "index.ef_search: got 0; expected at least 1"),
        ("pq", {"code_bits": 5}, "index.code_bits: got 5; expected one of 4, 8"),
        ("pq", {"dims_per_code": 0}, "index.dims_per_code: got 0; expected at least 1"),
        ("hybrid", {"rerank": 0}, "index.rerank: got 0; expected at least 1"),
        ("sq8", {"description": "SQ0"}, "index.description: got 'SQ0'; expected SQ4"),
        ("sq8", {"description": "HNSW8,RaBitQ"}, "index.description: got 'HNSW8,RaBitQ'"),
        ("sq8", {"description": "IVF,SQ8"}, "index.nprobe: got None; expected a number"),
        ("sq8", {"nprobe": 3}, "index.nprobe: got 3; expected null, by description=SQ8"),
    ],
)
def test_bad_values_are_refused(
    choice: Callable[..., Any], name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choice("index", name, **changes)


@pytest.mark.parametrize(
    ("name", "changes"), [("ivf", {"nlist": 11}), ("ivf_sq8", {"description": "IVF11,SQ8"})]
)
def test_more_lists_than_vectors(
    choice: Callable[..., Any], name: str, changes: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="nlist: got 11; expected at most the number of vectors"):
        choice("index", name, **changes).build(drawn(10, 8, 0), ids_of(10))


@pytest.mark.parametrize(
    "description",
    ["SQ4", "SQ6", "SQfp16", "SQbf16", "RaBitQ", "IVF,RaBitQ", "IVF8,RaBitQfs", "HNSW8,SQ4"],
)
def test_further_descriptions(choice: Callable[..., Any], tmp_path: Path, description: str) -> None:
    effort = {
        "nprobe": 8 if description.startswith("IVF") else None,
        "ef_search": 64 if description.startswith("HNSW") else None,
    }
    check_contract(
        lambda: choice("index", "sq8", description=description, **effort), 1500, 12, tmp_path
    )


def test_numbers_that_float16_cannot_hold(choice: Callable[..., Any]) -> None:
    vectors = drawn(4, 8, 0) * 1e6
    index = choice("index", "flat", metric="l2", vectors_dtype="float16")
    with pytest.raises(ValueError, match="vectors: got a number beyond 65504"):
        index.build(vectors, np.arange(4))


@pytest.mark.parametrize("name", STORED)
def test_the_order_of_an_array_in_memory_changes_nothing(
    choice: Callable[..., Any], name: str
) -> None:
    """As that of a data frame's columns; FAISS reads memory as it lies."""
    vectors, queries = drawn(60, 8, 0), drawn(5, 8, 1)
    found = []
    for order in (np.ascontiguousarray, np.asfortranarray):
        index = choice("index", name)
        index.build(order(vectors), ids_of(60))
        index.add(order(drawn(5, 8, 2)), np.arange(5))
        found.append(index.search(order(queries), 5))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_vectors_too_long_to_compare(choice: Callable[..., Any], metric: str) -> None:
    index, much = choice("index", "flat", metric=metric), np.float32(1e20)
    with pytest.raises(ValueError, match=r"vectors: got a vector of length .*e.20 in row "):
        index.build(drawn(4, 8, 0) * much, np.arange(4))
    index.build(drawn(4, 8, 0), np.arange(4))
    for m in (1, 3):
        with pytest.raises(ValueError, match=r"queries: got a vector of length .*at most 1e.18"):
            index.search(drawn(m, 8, 0) * much, 1)


@pytest.mark.parametrize("name", ["hnsw", "hnsw_sq8", "ivf", "ivf_sq8", "hybrid"])
def test_more_effort_than_there_is(choice: Callable[..., Any], name: str) -> None:
    """It costs no memory, and what was too much for few vectors is not forgotten for more."""
    index, queries = choice("index", name), drawn(9, 8, 1)
    index.build(drawn(10, 8, 0), ids_of(10))
    index.set_query_params(dict.fromkeys(index.query_params(), 2**31 - 1) | (
        {"rerank": 50} if "rerank" in index.query_params() else {}
    ))  # fmt: skip
    index.search(queries, 1)
    vectors = drawn(500, 8, 2)
    index.add(vectors, np.arange(1000, 1500))
    found, _ = index.search(queries, 1)
    reference = Reference(drawn(10, 8, 0), ids_of(10), Metric.COSINE)
    reference.add(vectors, np.arange(1000, 1500))
    for query, row in zip(queries, found.tolist(), strict=True):
        scores = reference.scores(query)
        assert scores[row[0]] == max(scores.values())


def test_short_vectors_in_lists_of_codes(choice: Callable[..., Any]) -> None:
    """By inner product a list's centre has length 1, and so had the error of a code."""
    vectors, queries = drawn(500, 8, 0) * np.float32(1e-4), drawn(20, 8, 1)
    index = choice("index", "ivf_sq8", metric="ip", nprobe=64)
    index.build(vectors, np.arange(500))
    reference = Reference(vectors, np.arange(500), Metric.IP)
    assert check_answers(index, reference, queries, 5) > 0.95
