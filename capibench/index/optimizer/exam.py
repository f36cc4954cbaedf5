"""How good an index is on queries that are not in it, and how that is known without any queries.

Where a user gives no queries, some of the index's own vectors are asked instead: but of a twin of
the index that does not hold them. A query that is in an index finds itself, and in a graph its
neighbours too, so that its recall would say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.metric import Floats, Metric, comparable
from capibench.index.optimizer.results import Figures
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.laboratory import is_exact, memory_bytes, seconds_per_query
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, Point
from capibench.measure import stats
from capibench.measure.stats import Estimate

NUM_ROUNDS = 9
_ROUND_S = 0.05
_ONE_IN = 10  # vectors are held out at most
_MIN_HELD_OUT = 2
_SAME = 1e-10  # squared distance over squared length, up to which two vectors are one


@dataclass(frozen=True, eq=False)
class Contents:
    """Live vectors by id, in the order of their rows."""

    ids: Ids  # [n]
    vectors: Vectors  # [n, d]

    @classmethod
    def of(cls, index: StoredIndex) -> Contents:
        store = index.store
        rows = store.occupied()
        vectors = np.concatenate(list(store.blocks()))
        return cls(store.ids_at(rows), vectors if len(rows) == len(vectors) else vectors[rows])

    def without(self, places: Ids) -> Contents:
        kept = np.ones(len(self.ids), dtype=np.bool_)
        kept[places] = False
        return Contents(self.ids[kept], self.vectors[kept])


def held_out_places(num_vectors: int, num_wanted: int, seed: int) -> Ids:
    """Places of the vectors to ask instead of queries: at most every tenth; none where that would
    be fewer than two."""
    count = min(num_wanted, num_vectors // _ONE_IN)
    if count < _MIN_HELD_OUT:
        return np.empty(0, dtype=np.int64)
    return np.random.default_rng(seed).choice(num_vectors, count, replace=False)


@dataclass(frozen=True, eq=False)
class Exam:
    """The same questions for several indexes that hold the same vectors."""

    contents: Contents
    truth: Truth
    k: int

    @classmethod
    def of(cls, contents: Contents, queries: Vectors, k: int, metric: Metric) -> Exam:
        k = min(k, len(contents.ids))
        return cls(contents, Truth.of(contents.vectors, queries, k, metric), k)

    def recall(self, index: StoredIndex) -> RecallSample:
        """Of an index that holds just these contents."""
        if is_exact(index):
            return RecallSample(np.ones(len(self.truth.queries)), self.k)
        found, _ = index.search(self.truth.queries, self.k)
        order = np.argsort(self.contents.ids)
        places = np.searchsorted(self.contents.ids, np.maximum(found, 0), sorter=order)
        rows = np.where(found < 0, -1, order[np.minimum(places, len(order) - 1)])
        return RecallSample(self.truth.recall_of(rows), self.k)

    def points(self, indexes: Mapping[str, StoredIndex], seed: int) -> dict[str, Point]:
        """Each index under its name, timed in interleaved rounds."""
        generator = np.random.default_rng(seed)
        names = list(indexes)
        seconds: Floats = np.empty((len(names), NUM_ROUNDS))
        for i in range(NUM_ROUNDS):
            for j in generator.permutation(len(names)):
                seconds[j, i] = seconds_per_query(
                    indexes[names[j]], self.truth.queries, self.k, _ROUND_S
                )
        return {
            name: _point(name, indexes[name], self.recall(indexes[name]), seconds[j])
            for j, name in enumerate(names)
        }


def _point(name: str, index: StoredIndex, recall: RecallSample, seconds: Floats) -> Point:
    cost = index.build_cost
    return Point(
        arm=Arm(name, name, ()),
        query=index.query_params(),
        num_vectors=index.num_vectors,
        exact=is_exact(index),
        recall=recall,
        seconds=seconds,
        memory_bytes=memory_bytes(index),
        build_s=0.0 if cost is None else cost.train_s + cost.add_s,
    )


def figures(point: Point, index: StoredIndex) -> Figures:
    """A point as a user reads it."""
    latency = stats.percentile(point.seconds * 1e3, 0.5)
    return Figures(
        recall=estimate(point.recall, point.exact),
        latency_ms=latency,
        memory_bytes=point.memory_bytes,
        parameters=index.describe(),
    )


def estimate(sample: RecallSample, exact: bool) -> Estimate:
    """Mean recall with its 95 % interval; exact search has none."""
    if exact:
        return Estimate(1.0, 1.0, 1.0, len(sample.per_query))
    mean, low, high = sample.interval()
    return Estimate(mean, low, high, len(sample.per_query))


def not_among(queries: Vectors, contents: Contents, metric: Metric) -> Ids:
    """Places of the queries that are not themselves among the vectors."""
    asked = comparable("test_vectors", queries, metric)
    distances = -Truth.of(contents.vectors, asked, 1, Metric.L2).similarities[:, 0]
    lengths = (asked.astype(np.float64) ** 2).sum(axis=1)
    return np.flatnonzero(distances > _SAME * lengths)
