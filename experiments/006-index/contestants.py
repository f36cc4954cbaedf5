"""Several settings of several structures over the same vectors, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from capibench.embedder.embedder import Vectors
from capibench.index.metric import Floats
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.candidates import Serving, built, node_of_arm
from capibench.index.tuner.laboratory import is_exact, memory_bytes, seconds_per_query
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, Point
from capibench.index.vector_store import VectorStore

ROUND_S = 0.05


@dataclass(frozen=True)
class Setting:
    """A structure by name and build parameters, and its query parameters."""

    arm: Arm
    query: Mapping[str, int]

    @property
    def name(self) -> str:
        return self.arm.name + "".join(f" {key}={value}" for key, value in self.query.items())


def arm_of(name: str) -> Arm:
    """The arm that `Budgeted.arms` gave this name: "hybrid dims_per_code=4"."""
    family, *pairs = name.split(" ")
    changes = [pair.split("=") for pair in pairs]
    values = ((key, None if value == "null" else int(value)) for key, value in changes)
    return Arm(name, family, tuple(values))


def setting_of(arm: str, query: str) -> Setting:
    """As a record writes them: "hybrid dims_per_code=4", "nprobe=8 rerank=4"."""
    pairs = [pair.split("=") for pair in query.split()]
    return Setting(arm_of(arm), {key: int(value) for key, value in pairs})


def structures(
    settings: Sequence[Setting], vectors: Vectors, serving: Serving
) -> dict[str, StoredIndex]:
    """Each arm once, built over one store."""
    ids = np.arange(len(vectors), dtype=np.int64)
    store = VectorStore.of(vectors, ids, serving.metric, serving.vectors_dtype)
    indexes: dict[str, StoredIndex] = {}
    for setting in settings:
        if setting.arm.name not in indexes:
            index = built(node_of_arm(setting.arm, serving))
            index.build_over(store)
            indexes[setting.arm.name] = index
    return indexes


def measured(
    settings: Sequence[Setting],
    indexes: Mapping[str, StoredIndex],
    truth: Truth,
    num_rounds: int,
    seed: int,
) -> dict[str, Point]:
    """Every setting's recall, and its latency in rounds that are interleaved in a new order each
    time, by name."""
    generator, k = np.random.default_rng(seed), truth.rows.shape[1]
    seconds: Floats = np.empty((len(settings), num_rounds))
    for i in range(num_rounds):
        for j in generator.permutation(len(settings)):
            index = indexes[settings[j].arm.name]
            index.set_query_params(settings[j].query)
            seconds[j, i] = seconds_per_query(index, truth.queries, k, ROUND_S)
    points = {}
    for setting, row in zip(settings, seconds, strict=True):
        index = indexes[setting.arm.name]
        index.set_query_params(setting.query)
        exact, cost = is_exact(index), index.build_cost
        found = np.ones(len(truth.queries))
        if not exact:
            found = truth.recall_of(index.search(truth.queries, k)[0])
        points[setting.name] = Point(
            arm=setting.arm,
            query=dict(setting.query),
            num_vectors=index.num_vectors,
            exact=exact,
            recall=RecallSample(found, k),
            seconds=row,
            memory_bytes=memory_bytes(index),
            build_s=0.0 if cost is None else cost.train_s + cost.add_s,
        )
    return points


def beats(one: Point, other: Point) -> bool:
    """Whether `one` has no less recall, takes no more memory and is quicker beyond the noise (95 %,
    paired over rounds)."""
    return _no_worse(one, other) and _surely_above_0(np.log(other.seconds) - np.log(one.seconds))


def may_beat(one: Point, other: Point) -> bool:
    """Whether `one` has no less recall, takes no more memory, is better in one of them, and the
    noise does not tell which of the two is quicker."""
    lead = np.log(other.seconds) - np.log(one.seconds)
    return (
        _no_worse(one, other)
        and (one.recall.mean, -one.memory_bytes) != (other.recall.mean, -other.memory_bytes)
        and not _surely_above_0(lead)
        and not _surely_above_0(-lead)
    )


def _no_worse(one: Point, other: Point) -> bool:
    return one.recall.mean >= other.recall.mean and one.memory_bytes <= other.memory_bytes


def times_as_fast(one: Point, other: Point) -> tuple[float, float, float]:
    """Latency of `other` over that of `one`: the geometric mean over paired rounds, with its 95 %
    interval (Student's t)."""
    ratios = np.log(other.seconds) - np.log(one.seconds)
    half = _half_width(ratios)
    mean = float(ratios.mean())
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


def _surely_above_0(values: Floats) -> bool:
    return float(values.mean()) > _half_width(values)


def _half_width(values: Floats) -> float:
    spread = float(values.std(ddof=1)) / len(values) ** 0.5
    return float(scipy_stats.t.ppf(0.975, len(values) - 1)) * spread
