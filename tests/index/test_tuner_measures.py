"""The tuner on real structures: recalls equal numpy's, budgets hold, the record is complete."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from time import thread_time
from typing import Any

import faiss
import numpy as np
import pytest

from capibench.config import build
from capibench.errors import ConfigError
from capibench.index.metric import Metric
from capibench.index.recall import exact_search, recall_at_k, similarities_of
from capibench.index.tuner import laboratory
from capibench.index.tuner import tune as tune_module
from capibench.index.tuner.candidates import Serving, family_names, node_of_arm
from capibench.index.tuner.laboratory import memory_bytes
from capibench.index.tuner.measured_features import measure_features
from capibench.index.tuner.truth import Truth
from capibench.index.tuner.tune import AS_CONFIGURED, tune
from capibench.index.tuning.points import Arm

SERVING = Serving(1, Metric.COSINE, "float32", 0.2)
SMALL = {
    "num_queries": 200,
    "tuning_s": 400.0,  # enough on any machine; what little time does: test_tuner_search.py
    "candidates": {"flat": {}, "pq": {"dims_per_code": [2, 4]}, "ivf": {}, "hybrid": {}},
}
HALVING = {
    "_target_": "capibench.index.tuning.halving.Halving",
    "min_sample": 1000,
    "keep_one_in": 4,
    "num_refinements": 1,
    "num_finalists": 3,
    "num_rounds": 3,
    "num_verifications": 3,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    faiss.omp_set_num_threads(1)


def texts_like(n: int, seed: int, d: int = 32) -> np.ndarray:
    """Low-dimensional structure and noise, as embeddings have."""
    mix = np.random.default_rng(99).standard_normal((8, d))
    generator = np.random.default_rng(seed)
    made = generator.standard_normal((n, 8)) @ mix + 0.3 * generator.standard_normal((n, d))
    return made.astype(np.float32)


VECTORS, QUERIES = texts_like(6000, 0), texts_like(400, 1)


def tuned(choice: Callable[..., Any], name: str = "speed", **changes: Any) -> Any:
    told: list[str] = []
    tuning = choice("index_tuning", name, **{**SMALL, "halving": HALVING, **changes})
    made = tune(tuning, VECTORS, QUERIES[0::2], QUERIES[1::2], 10, SERVING, None, told.append)
    assert told
    return made


@pytest.mark.parametrize("metric", list(Metric))
def test_truth_is_exact_search(metric: Metric) -> None:
    vectors, queries = VECTORS[:2000], QUERIES[:60]
    truth = Truth.of(vectors, queries, 10, metric)
    np.testing.assert_array_equal(truth.rows, exact_search(vectors, queries, 10, metric=metric))
    np.testing.assert_allclose(
        truth.similarities, similarities_of(vectors, queries, truth.rows, metric)
    )
    found = truth.rows.copy()
    found[::3, :4] = -1
    np.testing.assert_array_equal(truth.recall_of(found), recall_at_k(found, truth.rows))
    with pytest.raises(ValueError, match="k: got 2001"):
        Truth.of(vectors, queries, 2001, metric)


def test_truth_counts_copies_as_found() -> None:
    vectors = np.vstack([VECTORS[:50], VECTORS[:50]])
    truth = Truth.of(vectors, QUERIES[:5], 3, Metric.COSINE)
    assert (truth.recall_of((truth.rows + 50) % 100) == 1).all()


def test_little_time_still_measures_candidates(
    choice: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds of this thread's own work: what else the machine does takes none of them."""
    for module in (tune_module, laboratory):
        monkeypatch.setattr(module, "perf_counter", thread_time)
    made = tuned(choice, tuning_s=2.0)
    assert len({p.arm.family for p in (*made.found.points, *made.found.sample_points)}) > 1


def test_reasons_say_that_too_few_queries_left_the_candidates_out(
    choice: Callable[..., Any],
) -> None:
    made = tuned(choice, num_queries=10)
    assert made.found.verdict.chosen.arm.family == "flat"
    assert "left out: 10 queries cannot show a recall of 0.95" in " ".join(made.reasons)


def test_choice_keeps_its_promise_on_queries_that_it_never_saw(choice: Callable[..., Any]) -> None:
    made = tuned(choice)
    verdict = made.found.verdict
    assert verdict.met
    assert made.seconds <= SMALL["tuning_s"]
    index = build(made.node, "index")
    index.build(VECTORS, np.arange(len(VECTORS)))
    assert index.query_params() == dict(verdict.chosen.query)
    found, _ = index.search(QUERIES[1::2], 10)
    exact = exact_search(VECTORS, QUERIES[1::2], 10, metric=Metric.COSINE)
    recall = recall_at_k(found, exact)
    np.testing.assert_allclose(recall, made.recall.per_query)
    assert recall.mean() >= 0.95
    assert memory_bytes(index) == verdict.chosen.memory_bytes


def test_record_is_complete(choice: Callable[..., Any]) -> None:
    made = tuned(choice, "balanced")
    document = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert document["chosen"] in {row["name"] for row in document["points"]}
    assert document["front"]
    assert document["reasons"]
    assert document["conditions"]["num_threads"] == 1
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert len(rows) == len(document["points"])
    assert [row["name"] for row in rows if row["mark"] == "chosen"] == [document["chosen"]]
    # Each arm was measured at full size, or it is said why not.
    full = {row["arm"] for row in rows if row["num_vectors"] == "6000"}
    left_out = {left["arm"] for left in document["left_out"]}
    assert full | left_out == {
        "flat", "pq dims_per_code=2", "pq dims_per_code=4", "ivf", "hybrid",
    }  # fmt: skip
    assert not full & left_out


def test_what_finds_too_little_is_given_up_early(choice: Callable[..., Any]) -> None:
    points = tuned(choice).found.points
    asked = {len(p.recall.per_query) for p in points}
    assert asked == {100, 200}
    assert all(p.recall.mean < 0.95 for p in points if len(p.recall.per_query) == 100)


def test_memory_takes_less_than_flat(choice: Callable[..., Any]) -> None:
    made = tuned(choice, "memory")
    points = made.found.points
    assert made.found.verdict.chosen.memory_bytes == min(
        p.memory_bytes for p in points if p.recall_bound(0.95) >= 0.9
    )
    (flat,) = [p for p in points if p.arm.name == "flat"]
    assert flat.memory_bytes == 6000 * (32 * 4 + 8)


def test_configured_index_takes_part(choice: Callable[..., Any]) -> None:
    tuning = choice(
        "index_tuning", "speed", **{**SMALL, "candidates": {"flat": {}}, "halving": HALVING}
    )
    own = choice("index", "ivf", nlist=40)
    made = tune(tuning, VECTORS, QUERIES[0::2], QUERIES[1::2], 10, SERVING, own, lambda _: None)
    assert {p.arm.name for p in made.found.points} == {"flat", AS_CONFIGURED}
    same = choice("index", "flat")
    made = tune(tuning, VECTORS, QUERIES[0::2], QUERIES[1::2], 10, SERVING, same, lambda _: None)
    assert {p.arm.name for p in made.found.points} == {"flat"}
    assert made.node["_target_"].endswith(".Flat")


def test_adaptive_measures_its_features(choice: Callable[..., Any]) -> None:
    made = tuned(choice, "adaptive", hard_families=[], slow_families=[], scanned_mb=0.001)
    assert made.features.num_vectors == 6000
    assert 4 < made.features.intrinsic_dimension < 32
    assert "memory weighs" in made.reasons[0]


def test_features_of_strange_queries() -> None:
    usual = measure_features(VECTORS, QUERIES, Metric.L2, 0).query_shift
    strange = measure_features(VECTORS, QUERIES + 9, Metric.L2, 0).query_shift
    assert usual is not None
    assert strange is not None
    assert usual < 1.2 < 2 < strange
    few = measure_features(VECTORS[:3], QUERIES, Metric.L2, 0)
    assert few.cluster_share is None


def test_small_and_wrong_input(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "speed", **{**SMALL, "halving": HALVING})

    def with_(vectors: np.ndarray, queries: np.ndarray, k: int = 1) -> Any:
        return tune(tuning, vectors, queries, queries, k, SERVING, None, lambda _: None)

    assert with_(VECTORS[:1], QUERIES[:2]).node["_target_"].endswith(".Flat")
    with pytest.raises(ValueError, match="tune_queries: got none"):
        with_(VECTORS[:10], QUERIES[:0])
    with pytest.raises(ValueError, match="k: got 11"):
        with_(VECTORS[:10], QUERIES[:2], 11)
    with pytest.raises(ValueError, match="zero vector"):
        with_(np.zeros((10, 32), dtype=np.float32), QUERIES[:2])


def test_candidates_are_choices_of_the_index_group() -> None:
    assert {"flat", "ivf", "hnsw", "pq", "hybrid", "sq8", "rabitq"} <= set(family_names())
    assert not {"modeled", "hybrid_text"} & set(family_names())
    node = node_of_arm(Arm("a", "hnsw", (("num_links", 16),)), SERVING)
    assert (node["num_links"], node["max_batch_size"]) == (16, 1)
    with pytest.raises(ConfigError, match=r"candidates\.nonesuch: unknown"):
        node_of_arm(Arm("a", "nonesuch", ()), SERVING)
    with pytest.raises(ConfigError, match=r"candidates\.flat\.nlist: got 5"):
        node_of_arm(Arm("a", "flat", (("nlist", 5),)), SERVING)
