"""The five strategies: what each wants, and what `adaptive` makes of the vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from choice_files import load_choice

from capibench.config import build
from capibench.errors import ConfigError
from capibench.index.tuning.drift import has_drifted, must_recheck
from capibench.index.tuning.features import (
    Features,
    cluster_share,
    intrinsic_dimension,
    query_shift,
)
from capibench.index.tuning.objective import RecallSample

STRATEGIES = ("speed", "accuracy", "memory", "balanced", "adaptive")
USUAL = Features(50_000, 384, 76_800_000, 15.0, 0.3, 1.1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_chooses_an_index(choice: Callable[..., Any], name: str) -> None:
    tuning = choice("index_tuning", name)
    assert tuning.replaces_index
    assert not tuning.changes_effort
    plan = tuning.plan(USUAL)
    assert plan.arms[0].name == "flat"
    assert len({arm.name for arm in plan.arms}) == len(plan.arms) > 8
    assert plan.preference.limits.min_recall == tuning.min_recall
    names = {arm.name for arm in plan.arms}
    assert {"hybrid dims_per_code=4 nlist=64", "hybrid dims_per_code=4 nlist=null"} <= names


@pytest.mark.parametrize("name", ["none", "recall_target"])
def test_the_others_do_not(choice: Callable[..., Any], name: str) -> None:
    assert not choice("index_tuning", name).replaces_index


def test_limits_are_in_the_units_of_measurement(choice: Callable[..., Any]) -> None:
    limits = choice("index_tuning", "speed", max_latency_ms=2.0, max_memory_mb=1.5).limits
    assert (limits.max_latency_s, limits.max_memory_bytes, limits.max_build_s) == (
        0.002, 1_500_000, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_recall": 0.0}, "min_recall: got 0.0"),
        ({"confidence": 1.0}, "confidence: got 1.0"),
        ({"tuning_s": 0.0}, "tuning_s: got 0.0"),
        ({"max_latency_ms": -1.0}, "max_latency_ms: got -1.0"),
        ({"num_queries": 0}, "num_queries: got 0"),
        ({"candidates": {}}, "candidates: got none"),
        ({"candidates": {"pq": {"dims_per_code": []}}}, "candidates.pq.dims_per_code: got no"),
        ({"weights": {"recall": 1.0}}, "weights: got recall"),
        ({"weights": {"recall": 0, "latency": 0, "memory": 0, "build": 0}}, "one above 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load_choice("index_tuning", "balanced", **changes), "index_tuning")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hard_families": ["nonesuch"]}, "hard_families: got nonesuch"),
        ({"memory_mb": 0.0}, "memory_mb: got 0.0"),
    ],
)
def test_bad_rules_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load_choice("index_tuning", "adaptive", **changes), "index_tuning")


def families(tuning: Any, **features: Any) -> tuple[set[str], str, Any]:
    plan = tuning.plan(replace(USUAL, **features))
    return {arm.family for arm in plan.arms}, " ".join(plan.reasons), plan.preference.weights


def test_adaptive_weighs_memory_by_what_is_filled(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "adaptive", memory_mb=1000.0)
    _, reasons, weights = families(tuning, vectors_bytes=250_000_000)
    assert weights["memory"] == pytest.approx(0.25)
    assert "fill 25.0% of 1000 MB" in reasons
    assert families(tuning, vectors_bytes=5_000_000_000)[2]["memory"] == 1.0


def test_adaptive_scans_few_vectors(choice: Callable[..., Any]) -> None:
    tried, reasons, _ = families(choice("index_tuning", "adaptive"), vectors_bytes=100_000)
    assert tried == {"flat"}
    assert "only flat is tried" in reasons


def test_adaptive_leaves_families_out(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "adaptive")
    every = families(tuning)[0]
    hard, reasons, _ = families(tuning, intrinsic_dimension=90.0)
    assert hard == every - {"ivf", "ivf_sq8"}
    assert "about 90 directions" in reasons
    clustered, reasons, _ = families(tuning, cluster_share=0.8)
    assert clustered == every - {"hnsw", "hnsw_sq8"}
    assert "80%" in reasons
    unknown, _, _ = families(tuning, intrinsic_dimension=None, cluster_share=None, query_shift=None)
    assert unknown == every


def test_adaptive_is_careful_with_strange_queries(choice: Callable[..., Any]) -> None:
    tuning = choice("index_tuning", "adaptive")
    usual = families(tuning)[2]["recall"]
    assert families(tuning, query_shift=2.0)[2]["recall"] == pytest.approx(2 * usual)


@pytest.mark.parametrize("dimension", [2, 5, 10])
def test_intrinsic_dimension_of_a_flat_sheet(dimension: int) -> None:
    """Uniform in `dimension` directions of 40: the estimate sees those only."""
    generator = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(generator.standard_normal((40, 40)))
    points = np.zeros((4000, 40))
    points[:, :dimension] = generator.uniform(size=(4000, dimension))
    points = points @ rotation
    squared = ((points[:200, None] - points[None, 200:]) ** 2).sum(axis=2)
    distances = np.sqrt(np.sort(squared, axis=1)[:, :20])
    assert intrinsic_dimension(distances) == pytest.approx(dimension, rel=0.3)


def test_copies_say_nothing_of_dimension() -> None:
    assert intrinsic_dimension(np.zeros((5, 10))) is None
    assert intrinsic_dimension(np.ones((5, 10))) is None
    assert intrinsic_dimension(np.ones((5, 2))) is None


def test_clusters_are_told_from_none() -> None:
    generator = np.random.default_rng(0)
    none = generator.standard_normal((3000, 32)).astype(np.float32)
    centres = 5 * generator.standard_normal((20, 32)).astype(np.float32)
    strong = centres[generator.integers(0, 20, 3000)] + none * 0.3
    low, high = cluster_share(none, 0), cluster_share(strong, 0)
    assert low is not None
    assert high is not None
    assert low < 0.3
    assert high > 0.8
    assert cluster_share(none[:100], 0) is None
    assert cluster_share(np.ones((2000, 4), dtype=np.float32), 0) is None


def test_query_shift() -> None:
    assert query_shift(np.array([2.0, 4.0, 3.0]), np.array([1.0, 1.5, 2.0])) == 2.0
    assert query_shift(np.array([1.0]), np.zeros(3)) is None
    assert query_shift(np.zeros(0), np.ones(3)) is None


def test_drift() -> None:
    assert not must_recheck(10, 100, None)
    assert not must_recheck(20, 100, 0.2)
    assert must_recheck(21, 100, 0.2)
    good = RecallSample(np.ones(400), 10)
    assert not has_drifted(good, 0.95, 0.95)
    assert has_drifted(RecallSample(np.append(np.ones(400), np.zeros(30)), 10), 0.95, 0.95)
