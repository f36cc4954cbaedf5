"""RAGIndexOptimizer through its public interface: kept, versioned, changed as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from test_tuner_measures import HALVING, texts_like

from capibench.errors import ConfigError, DataError
from capibench.index import (
    IndexType,
    OptimizationStrategy,
    OptimizationType,
    RAGIndexOptimizer,
)
from capibench.index.metric import Metric
from capibench.index.recall import exact_search, similarities_of

QUICK = {
    "num_queries": 100,
    "tuning_s": 400.0,  # enough on any machine
    "candidates": {"flat": {}, "hybrid": {}},
    "halving": HALVING,
}
VECTORS, QUERIES = texts_like(3000, 0), texts_like(200, 1)
IDS = np.random.default_rng(3).permutation(np.arange(3000, dtype=np.int64) * 7 + 5)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    faiss.omp_set_num_threads(1)


@pytest.fixture
def optimizer(tmp_path: Path) -> RAGIndexOptimizer:
    return RAGIndexOptimizer(tmp_path / "indices")


def of_type(kind: IndexType, **more: Any) -> dict[str, Any]:
    halving = {**HALVING}
    return {"num_queries": 100, "tuning_s": 400.0, "halving": halving, "index_type": kind, **more}


def found_ids(result: Any) -> list[int]:
    return [id_ for id_, _ in result.results]


def exact_ids(vectors: np.ndarray, ids: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return exact_search(vectors, query[None], k, ids, Metric.COSINE)[0].tolist()


def test_names() -> None:
    assert [t.value for t in IndexType] == ["flat", "ivf", "hnsw", "pq", "hybrid"]
    assert [s.value for s in OptimizationStrategy] == [
        "speed", "accuracy", "memory", "balanced", "adaptive",
    ]  # fmt: skip


def test_build_search_and_find_again(optimizer: RAGIndexOptimizer) -> None:
    name = optimizer.build_optimized_index(
        VECTORS, "docs", custom_config=QUICK, ids=IDS, queries=QUERIES
    )
    assert name == "docs"
    info = optimizer.get_index_info("docs")
    assert info.type in ("flat", "hybrid")
    assert (info.strategy, info.num_vectors, info.dimension) == ("balanced", 3000, 32)
    assert info.recall is not None
    assert info.recall.low is not None
    assert info.recall_k == 10
    assert info.reasons
    assert info.version == 1
    assert info.disk_bytes == sum(
        f.stat().st_size for f in (optimizer.indices_dir / "docs").iterdir()
    )
    json.dumps(info.to_json())
    assert optimizer.get_measurements("docs")

    fresh = RAGIndexOptimizer(optimizer.indices_dir)
    assert fresh.list_indices() == ["docs"]
    for one in (optimizer, fresh):
        result = one.search(QUERIES[0], "docs", k=5)
        assert result.index_used == "docs"
        assert len(set(found_ids(result)) & set(exact_ids(VECTORS, IDS, QUERIES[0], 5))) >= 4
        distances = [distance for _, distance in result.results]
        assert distances == sorted(distances)
        row = np.flatnonzero(found_ids(result)[0] == IDS)
        cosine = similarities_of(VECTORS, QUERIES[:1], row[None], Metric.COSINE)[0, 0]
        assert distances[0] == pytest.approx(1 - cosine, abs=1e-5)
    batch = fresh.search_batch(QUERIES[:4], "docs", k=5)
    assert found_ids(batch[0]) == found_ids(fresh.search(QUERIES[0], "docs", k=5))
    assert len({r.query_id for r in batch}) == 4
    assert fresh.load_index("docs").to_json() == info.to_json()


@pytest.mark.parametrize("kind", list(IndexType))
def test_type_can_be_demanded(optimizer: RAGIndexOptimizer, kind: IndexType) -> None:
    optimizer.build_optimized_index(
        VECTORS,
        "x",
        "speed",
        of_type(kind),
        IDS,
        queries=QUERIES,  # type: ignore[arg-type]
    )
    info = optimizer.get_index_info("x")
    assert info.type == kind.value
    expected = {"flat": "Flat", "ivf": "IVF", "hnsw": "HNSW", "pq": "PQ", "hybrid": "IVF"}
    assert info.factory_string.startswith(expected[kind.value])
    optimizer.add("x", QUERIES[:3], [1, 2, 3])
    optimizer.delete("x", IDS[:10])
    result = optimizer.search(QUERIES[1], "x", k=3)
    assert found_ids(result)[0] == 2
    assert optimizer.get_index_info("x").num_vectors == 3000 + 3 - 10


def test_without_queries_some_vectors_are_held_out_and_are_there_in_the_end(
    optimizer: RAGIndexOptimizer,
) -> None:
    optimizer.build_optimized_index(VECTORS, "docs", custom_config=QUICK, ids=IDS)
    info = optimizer.get_index_info("docs")
    assert info.num_vectors == 3000
    assert info.recall is not None
    for i in range(0, 3000, 300):
        assert found_ids(optimizer.search(VECTORS[i], "docs", k=1)) == [IDS[i]]


def test_few_vectors_are_searched_exactly(optimizer: RAGIndexOptimizer) -> None:
    optimizer.build_optimized_index(VECTORS[:5], "few")
    info = optimizer.get_index_info("few")
    assert (info.type, info.recall) == ("flat", None)
    assert "too few" in info.reasons[0]
    assert found_ids(optimizer.search(VECTORS[2], "few", k=5))[0] == 2
    with pytest.raises(ValueError, match="expected enough to hold some out"):
        optimizer.optimize_index("few", OptimizationType.TUNE)


def test_documents_and_filters(optimizer: RAGIndexOptimizer) -> None:
    n = 400
    optimizer.build_optimized_index(
        VECTORS[:n],
        "docs",
        custom_config=QUICK,
        ids=IDS[:n],
        documents=[f"text {i}" for i in IDS[:n]],
        metadata={"part": [int(i % 4) for i in range(n)]},
    )
    optimizer.add("docs", QUERIES[:1], [1], documents=["text 1"], metadata={"part": [9]})
    fresh = RAGIndexOptimizer(optimizer.indices_dir)
    result = fresh.search(QUERIES[0], "docs", k=3)
    assert result.metadata["documents"] == [f"text {i}" for i in found_ids(result)]
    in_part = fresh.search(QUERIES[0], "docs", k=5, filter={"part": [1, 2]})
    places = [int(np.flatnonzero(i == IDS)[0]) for i in found_ids(in_part)]
    assert {p % 4 for p in places} <= {1, 2}
    assert found_ids(fresh.search(QUERIES[0], "docs", k=5, filter={"part": 9})) == [1]
    assert set(found_ids(fresh.search(QUERIES[0], "docs", k=2, filter=IDS[:2]))) == set(
        IDS[:2].tolist()
    )
    with pytest.raises(ValueError, match="filter: got field 'nonesuch'"):
        fresh.search(QUERIES[0], "docs", filter={"nonesuch": 1})
    with pytest.raises(ValueError, match="documents: got none; expected some"):
        fresh.add("docs", QUERIES[:1], [2], metadata={"part": [1]})
    fresh.delete("docs", [1])
    assert fresh.search(QUERIES[0], "docs", k=5, filter={"part": 9}).results == []


def test_what_fails_changes_nothing(optimizer: RAGIndexOptimizer) -> None:
    optimizer.build_optimized_index(
        VECTORS[:300], "docs", custom_config=QUICK, metadata={"part": list(range(300))}
    )
    before = optimizer.search_batch(QUERIES[:20], "docs", k=10)
    for vectors, ids, metadata in (
        (QUERIES[:2], [5, 1000], {"part": [1, 2]}),  # 5 is there
        (QUERIES[:2], [1000, 1000], {"part": [1, 2]}),
        (QUERIES[:2], [1000, 1001], {"part": [1]}),
        (QUERIES[:2], [1000, 1001], {"other": [1, 2]}),
        (QUERIES[:2, :5], [1000, 1001], {"part": [1, 2]}),
        (np.full((1, 32), np.nan, dtype=np.float32), [1000], {"part": [1]}),
        (np.zeros((1, 32), dtype=np.float32), [1000], {"part": [1]}),
    ):
        with pytest.raises(ValueError):
            optimizer.add("docs", vectors, ids, metadata=metadata)
    for wrong, told in (
        ([1.9], "ids: got float64"),
        (5, r"ids: got shape \(\)"),
        (["x"], "ids: got"),
    ):
        with pytest.raises(ValueError, match=told):
            optimizer.delete("x", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which is not in the index"):
        optimizer.delete("docs", [5, 1000])
    after = optimizer.search_batch(QUERIES[:20], "docs", k=10)
    assert [r.results for r in after] == [r.results for r in before]
    assert optimizer.get_index_info("docs").version == 1
    optimizer.add("docs", QUERIES[:1], [1000], metadata={"part": [1]})  # nothing was left over


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index_name": "a/b"}, "index_name: got 'a/b'"),
        ({"index_name": ".."}, "index_name: got '..'"),
        ({"strategy": "fastest"}, "strategy: got 'fastest'; expected one of speed"),
        ({"custom_config": {"nonesuch": 1}}, "custom_config.nonesuch: got 1"),
        ({"custom_config": {"min_recall": 2.0}}, "min_recall: got 2.0"),
        ({"custom_config": {"index_type": "lsh"}}, "custom_config.index_type: got 'lsh'"),
        ({"ids": [1, 1, *range(2, 100)]}, "ids: got 1 twice"),
        ({"ids": [0.5] * 100}, "ids: got float64"),
        ({"vectors": np.zeros((0, 4), dtype=np.float32)}, "vectors: got none"),
        ({"vectors": np.zeros((100, 4))}, "vectors: got a zero vector"),
        ({"vectors": np.ones((100, 4), dtype=bool)}, "vectors: got bool of shape"),
        ({"vectors": np.full((100, 4), 1e300)}, "vectors: got a number beyond 3.4e38"),
        ({"vectors": [[1.0, 2.0], [3.0]]}, "vectors: got a list that is no array"),
        ({"vectors": VECTORS[0]}, "vectors: got float32 of shape"),
        (
            {"ids": np.arange(100, dtype=np.uint64) + np.uint64(2**63)},
            "ids: got 9223372036854775907",
        ),
        ({"queries": np.zeros((9, 32))}, "queries: got a zero vector"),
        ({"index_name": 5}, "index_name: got 5"),
        ({"metadata": {"a": [None] * 100}}, r"metadata.a\[0\]: got None"),
        ({"documents": list(range(100))}, r"documents\[0\]: got 0; expected text"),
        ({"custom_config": [1]}, r"custom_config: got \[1\]; expected a mapping"),
        ({"custom_config": {"tuning_s": float("inf")}}, "custom_config.tuning_s: got inf"),
        ({"custom_config": {"max_memory_mb": float("inf")}}, "custom_config.max_memory_mb: got"),
        (
            {"custom_config": {"weights": {"recall": float("nan")}}},
            "custom_config.weights.recall: got nan",
        ),
        ({"custom_config": {"halving": {"num_rounds": 10**9}}}, "custom_config.halving.num_rounds"),
        (
            {"custom_config": {"candidates": {"hnsw": {"num_links": ["a"]}}}},
            "custom_config.candidates.hnsw.num_links: got 'a'",
        ),
        (
            {"custom_config": {"candidates": {"flat": {"metric": ["l2"]}}}},
            "custom_config.candidates.flat.metric: got 'l2'; expected none",
        ),
        (
            {"custom_config": {"index_type": "flat", "candidates": {"flat": {}}}},
            "custom_config.index_type: got 'flat' and candidates",
        ),
        ({"vectors": np.zeros((100, 4), dtype=np.float32)}, "zero vector"),
        ({"queries": QUERIES[:1]}, "queries: got shape"),
        ({"documents": ["one"]}, "documents: got 1 values"),
    ],
)
def test_bad_input_is_one_clear_error_and_saves_nothing(
    optimizer: RAGIndexOptimizer, arguments: dict[str, Any], message: str
) -> None:
    given = {"vectors": VECTORS[:100], "index_name": "x", **arguments}
    with pytest.raises(ValueError, match=message):
        optimizer.build_optimized_index(**given)
    assert optimizer.list_indices() == []


def test_unknown_and_damaged_indexes(optimizer: RAGIndexOptimizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="index_name: got 'x'; expected one of: none is there"):
        optimizer.search(QUERIES[0], "x")
    optimizer.build_optimized_index(VECTORS[:100], "x", custom_config=QUICK)
    with pytest.raises(ConfigError, match="'x', which is there already"):
        optimizer.build_optimized_index(VECTORS[:100], "x", custom_config=QUICK)
    with pytest.raises(ValueError, match="k: got 101"):
        optimizer.search(QUERIES[0], "x", k=101)
    with pytest.raises(ValueError, match="query_vector: got shape"):
        optimizer.search(QUERIES[:2], "x")
    folder = optimizer.indices_dir / "x"
    (vectors,) = folder.glob("vectors-*")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        RAGIndexOptimizer(optimizer.indices_dir).search(QUERIES[0], "x")
    shutil.rmtree(folder)
    (folder).mkdir()
    with pytest.raises(DataError, match="half written"):
        optimizer.load_index("x")


def test_two_optimizers_see_each_others_changes(optimizer: RAGIndexOptimizer) -> None:
    optimizer.build_optimized_index(VECTORS[:200], "x", custom_config=QUICK)
    other = RAGIndexOptimizer(optimizer.indices_dir)
    assert other.search(QUERIES[0], "x", k=1).metadata["index_version"] == 1
    optimizer.add("x", QUERIES[:1], [900])
    other.add("x", QUERIES[1:2], [901])
    assert found_ids(optimizer.search(QUERIES[1], "x", k=1)) == [901]
    assert found_ids(other.search(QUERIES[0], "x", k=1)) == [900]
    assert optimizer.get_index_info("x").version == 3
    other.delete_index("x")
    assert optimizer.list_indices() == []
    with pytest.raises(ConfigError, match="index_name"):
        optimizer.search(QUERIES[0], "x")


def test_rebalance_learns_the_vectors_as_they_are(optimizer: RAGIndexOptimizer) -> None:
    """Lists made for one region, after everything moved to another."""
    config = of_type(IndexType.IVF, min_recall=0.5)
    optimizer.build_optimized_index(VECTORS[:1000], "x", "speed", config)  # type: ignore[arg-type]
    moved = texts_like(1500, 5) + np.float32(20)
    optimizer.add("x", moved, np.arange(5000, 6500))
    optimizer.delete("x", np.arange(1000))
    result = optimizer.optimize_index("x", OptimizationType.REBALANCE)
    assert result.changed
    assert result.after.recall.value != result.before.recall.value
    assert result.after.latency_ms.value > 0
    assert optimizer.get_index_info("x").num_changed == 0
    fresh = RAGIndexOptimizer(optimizer.indices_dir)
    assert found_ids(fresh.search(moved[3], "x", k=1)) == [5003]
    json.dumps(result.to_json())


def test_compress_takes_less_memory_and_keeps_the_recall(optimizer: RAGIndexOptimizer) -> None:
    asked = texts_like(800, 1)
    config = of_type(IndexType.IVF, num_queries=200)
    optimizer.build_optimized_index(VECTORS, "x", "speed", config, queries=asked)  # type: ignore[arg-type]
    few = {"candidates": {"flat": {}, "sq8": {}, "pq": {}}}
    result = optimizer.optimize_index("x", OptimizationType.COMPRESS, custom_config=few)
    assert result.changed
    assert result.after.memory_bytes < result.before.memory_bytes / 2
    assert result.after.recall.value >= 0.9
    info = optimizer.get_index_info("x")
    assert info.type != "ivf"
    assert info.memory_bytes < result.before.memory_bytes
    again = optimizer.optimize_index("x", OptimizationType.COMPRESS, custom_config=few)
    assert not again.changed
    assert again.after == again.before
    stats = optimizer.get_optimizer_stats()
    assert (stats["optimizations"], stats["improvements"]) == (2, 1)


def test_tune_widens_a_search_that_finds_too_little(optimizer: RAGIndexOptimizer) -> None:
    config = {**QUICK, "candidates": {"hybrid": {}}, "min_recall": 0.3}
    optimizer.build_optimized_index(VECTORS, "x", "speed", config, queries=QUERIES)  # type: ignore[arg-type]
    result = optimizer.optimize_index("x", OptimizationType.TUNE)
    assert result.before.recall.value >= 0.3
    assert result.reasons


def test_adaptive_measures_again_after_many_changes(optimizer: RAGIndexOptimizer) -> None:
    config = {**QUICK, "scanned_mb": 0.01, "hard_families": [], "slow_families": []}
    optimizer.build_optimized_index(VECTORS[:1500], "x", "adaptive", config)  # type: ignore[arg-type]
    optimizer.add("x", VECTORS[1500:1600], np.arange(1500, 1600))
    assert optimizer.get_index_info("x").num_changed == 100
    assert optimizer.get_optimizer_stats()["rechecks"] == 0
    optimizer.add("x", VECTORS[1600:2000], np.arange(1600, 2000))
    assert optimizer.get_optimizer_stats()["rechecks"] == 1
    assert optimizer.get_index_info("x").num_changed == 0


def test_compare(optimizer: RAGIndexOptimizer) -> None:
    for kind in (IndexType.FLAT, IndexType.PQ):
        optimizer.build_optimized_index(
            VECTORS,
            kind.value,
            "memory",
            of_type(kind),
            IDS,
            queries=QUERIES,  # type: ignore[arg-type]
        )
    asked = np.vstack([texts_like(50, 7), VECTORS[:3]])
    compared = optimizer.compare_indices(["flat", "pq"], asked)
    assert (compared.num_queries, compared.num_left_out) == (50, 3)
    assert compared.figures["flat"].recall.value == 1.0
    assert compared.best["recall"].name == "flat" or "flat" in compared.best["recall"].ties
    assert compared.best["memory"].name == "pq"
    assert set(compared.pareto_front) <= {"flat", "pq"}
    json.dumps(compared.to_json())
    with pytest.raises(ValueError, match="all of them in the index"):
        optimizer.compare_indices(["flat", "pq"], VECTORS[:5])
    with pytest.raises(ValueError, match="names: got"):
        optimizer.compare_indices(["flat"], asked)
    optimizer.delete("pq", IDS[:1])
    with pytest.raises(ValueError, match="which hold different vectors"):
        optimizer.compare_indices(["flat", "pq"], asked)


def test_stats(optimizer: RAGIndexOptimizer) -> None:
    empty = optimizer.get_optimizer_stats()
    assert (empty["searches"], empty["mean_search_ms_per_query"]) == (0, None)
    optimizer.build_optimized_index(VECTORS[:100], "x", custom_config=QUICK)
    optimizer.search_batch(QUERIES[:7], "x")
    stats = json.loads(json.dumps(optimizer.get_optimizer_stats()))
    assert (stats["builds"], stats["searches"], stats["queries"]) == (1, 1, 7)
    assert stats["by_index"]["x"]["mean_search_ms_per_query"] > 0
    assert stats["num_indices"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "hamming"}, "metric: got 'hamming'; expected one of cosine, ip, l2"),
        ({"k": 0}, "k: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"vectors_dtype": "int8"}, "vectors_dtype: got 'int8'"),
        ({"k": 2.5}, "k: got 2.5; expected a whole number"),
        ({"k": True}, "k: got True; expected a whole number"),
        ({"batch_size": "3"}, "batch_size: got '3'; expected a whole number"),
        ({"max_deleted_share": 2}, "max_deleted_share: got 2; expected 0 or more, below 1"),
        ({"max_deleted_share": float("nan")}, "max_deleted_share: got nan"),
        ({"indices_dir": 5}, "indices_dir: got 5; expected a path"),
    ],
)
def test_bad_settings(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RAGIndexOptimizer(**{"indices_dir": tmp_path, **arguments})


def test_numbers_of_any_type_are_taken(tmp_path: Path) -> None:
    """Lists, other types and NumPy's whole numbers mean what float32 arrays mean."""
    optimizer = RAGIndexOptimizer(tmp_path, k=np.int64(5), batch_size=np.int32(1))  # type: ignore[arg-type]
    config = {"candidates": {"flat": {}}, "num_queries": np.int64(9), "min_recall": np.float32(0.9)}
    ids = np.arange(30, dtype=np.uint64)
    wide = VECTORS[:30].astype(np.float64)
    few = QUERIES[:4].tolist()
    optimizer.build_optimized_index(wide, "x", custom_config=config, ids=ids, queries=few)
    optimizer.add("x", QUERIES[:2].tolist(), [100, 101])
    asked = np.asfortranarray(QUERIES[:2].astype(">f4"))
    assert [found_ids(r)[0] for r in optimizer.search_batch(asked, "x", np.int64(3))] == [100, 101]  # type: ignore[arg-type]
    assert found_ids(optimizer.search(QUERIES[0].tolist(), "x", 1, filter={3, 101})) != [100]
    optimizer.delete("x", np.array([100], dtype=np.uint8))
    assert optimizer.get_index_info("x").num_vectors == 31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2.5}, "k: got 2.5; expected a whole number"),
        ({"query_vector": [float("nan")] * 32}, "query_vector: got NaN"),
        ({"query_vector": [0.0] * 32}, "query_vector: got a zero vector"),
        ({"query_vector": [1.0] * 5}, "query_vector: got dimension 5; expected 32"),
        ({"query_vector": "text"}, "query_vector: got shape"),
        ({"filter": "text"}, "filter: got <U4; expected integers"),
        ({"filter": [0.5]}, "filter: got float64; expected integers"),
    ],
)
def test_bad_searches(
    optimizer: RAGIndexOptimizer, arguments: dict[str, Any], message: str
) -> None:
    optimizer.build_optimized_index(VECTORS[:9], "x")
    with pytest.raises(ValueError, match=message):
        optimizer.search(**{"query_vector": QUERIES[0], "index_name": "x", "k": 3, **arguments})
    with pytest.raises(ValueError, match="names: got 'xx'; expected a list"):
        optimizer.compare_indices("xx", QUERIES)
    with pytest.raises(ConfigError, match=r"custom_config.min_recall: got 3.0"):
        optimizer.optimize_index("x", custom_config={"min_recall": 3.0})
