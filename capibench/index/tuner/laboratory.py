"""Builds structures and measures them, for a search that only decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.errors import ConfigError
from capibench.index.flat import Flat
from capibench.index.hnsw import Hnsw
from capibench.index.metric import Floats
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.candidates import Serving, built
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.halving import Trial, Unsuited
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, Point
from capibench.index.vector_store import VectorStore

_PASS_S = 0.05  # a round of latency takes about so long, or one pass over the queries
_LEAST_ROUNDS = 3  # that are timed side by side, however late it is
_WARM_UP = 3  # calls before a round, not counted
# Most settings that are tried find too little, which shows on few queries already.
_FIRST_QUERIES = 100
_SURE = 0.999  # confidence with which a setting is given up after these
_HOPELESS_PASS_S = 0.01  # its latency is only to be seen in the record


def seconds_per_query(index: StoredIndex, queries: Vectors, k: int, limit_s: float) -> float:
    """Mean seconds per query of one pass in the serving mode: `index.max_batch_size` queries at
    once, with whatever threads FAISS is set to. The pass ends early after `limit_s`."""
    size = min(index.max_batch_size, len(queries))
    batches = [queries[i : i + size] for i in range(0, len(queries) - size + 1, size)]
    begin_s = perf_counter()
    for batch in batches[:_WARM_UP]:
        index.search(batch, k)
        if perf_counter() - begin_s > limit_s:
            break
    count, begin_s = 0, perf_counter()
    elapsed_s = 0.0
    for batch in batches:
        index.search(batch, k)
        count += len(batch)
        elapsed_s = perf_counter() - begin_s
        if elapsed_s > limit_s:
            break
    return elapsed_s / count


def memory_bytes(index: StoredIndex) -> int:
    """Bytes that answering touches all of: the structure, and the stored vectors where a type
    compares these as it goes. Vectors that only re-ranking reads, a few per query, stay out."""
    store = index.store
    reads_all = isinstance(index, Flat)
    follows_links = isinstance(index, Hnsw) and store.in_one_piece is not None
    return index.structure_bytes() + (store.num_bytes if reads_all or follows_links else 0)


def is_exact(index: StoredIndex) -> bool:
    """Whether recall is 1 by construction."""
    return not index.query_ladders() and index.vectors_dtype == "float32"


@dataclass
class BuiltTrial:
    """A built structure beside the truth about the vectors in it."""

    arm: Arm
    index: StoredIndex
    truth: Truth
    build_s: float
    hopeless_below: float  # a recall surely below this is not measured to the end

    @property
    def ladders(self) -> Mapping[str, Sequence[int]]:
        return self.index.query_ladders()

    def measure(self, query: Mapping[str, int]) -> Point:
        self.index.set_query_params(query)
        recall = self._recall_or_hopeless()
        whole = len(recall.per_query) == len(self.truth.queries)
        limit_s = _PASS_S if whole else _HOPELESS_PASS_S
        seconds = seconds_per_query(self.index, self.truth.queries, self._k, limit_s)
        return Point(
            arm=self.arm,
            query=dict(query),
            num_vectors=self.index.num_vectors,
            exact=is_exact(self.index),
            recall=recall,
            seconds=np.array([seconds]),
            memory_bytes=memory_bytes(self.index),
            build_s=self.build_s,
        )

    def recall(self, truth: Truth) -> RecallSample:
        """Against a truth about the same vectors, at the present setting."""
        k = truth.rows.shape[1]
        if is_exact(self.index):
            return RecallSample(np.ones(len(truth.queries)), k)
        found, _ = self.index.search(truth.queries, k)
        return RecallSample(truth.recall_of(found), k)

    def _recall_or_hopeless(self) -> RecallSample:
        """On all tuning queries, or on the first where these leave no hope."""
        truth = self.truth
        if is_exact(self.index) or len(truth.queries) <= _FIRST_QUERIES:
            return self.recall(truth)
        first = self.recall(truth.part(0, _FIRST_QUERIES))
        missed = RecallSample(1 - first.per_query, first.k)
        if 1 - missed.lower_bound(_SURE) < self.hopeless_below:
            return first
        rest = self.recall(truth.part(_FIRST_QUERIES, len(truth.queries)))
        return RecallSample(np.concatenate([first.per_query, rest.per_query]), first.k)

    def round(self, query: Mapping[str, int]) -> float:
        """One round of latency."""
        self.index.set_query_params(query)
        return seconds_per_query(self.index, self.truth.queries, self._k, _PASS_S)

    def close(self) -> None:
        """Forget the structure; nothing can be asked of this trial any more."""
        del self.index

    @property
    def _k(self) -> int:
        return int(self.truth.rows.shape[1])


class Workbench:
    """The `Laboratory` of real vectors. Samples are nested: the first of one random order."""

    def __init__(
        self,
        vectors: Vectors,
        tune: Vectors,
        verify: Vectors,
        k: int,
        nodes: Mapping[Arm, Mapping[str, Any]],
        serving: Serving,
        deadline_s: float,
        timed_by_s: float,
        hopeless_below: float,
        seed: int,
    ) -> None:
        """Args:
        vectors: [n, d].
        tune, verify: queries [m, d] to search by and to verify on.
        k: of recall@k.
        nodes: the configuration of each arm.
        serving: what they have in common.
        deadline_s: of `perf_counter`, for building and measuring.
        timed_by_s: and for timing side by side, which ends with the round that passes it.
        hopeless_below: a setting whose recall is surely less is not measured to the end.
        seed: of samples and of the order of timing.
        """
        self.num_queries = len(tune)
        self._vectors, self._tune, self._verify = vectors, tune, verify
        self._k, self._nodes, self._serving = k, nodes, serving
        self._deadline_s, self._generator = deadline_s, np.random.default_rng(seed)
        self._timed_by_s, self._hopeless_below = timed_by_s, hopeless_below
        self._order = self._generator.permutation(len(vectors))
        self._stores: dict[int, tuple[VectorStore, Truth]] = {}
        self._second: Truth | None = None

    def seconds_left(self) -> float:
        return self._deadline_s - perf_counter()

    def build(self, arm: Arm, num_vectors: int) -> BuiltTrial:
        store, truth = self._prepared(num_vectors)
        try:
            index = built(self._nodes[arm])
            begin_s = perf_counter()
            index.build_over(store)
        except (ConfigError, ImportError):
            raise
        except ValueError as error:  # a parameter that does not fit so many vectors
            raise Unsuited(str(error)) from error
        return BuiltTrial(arm, index, truth, perf_counter() - begin_s, self._hopeless_below)

    def time_together(self, pairs: Sequence[tuple[Trial, Point]], num_rounds: int) -> list[Point]:
        rounds: Floats = np.empty((len(pairs), num_rounds))
        num_done = 0
        while num_done < num_rounds:
            if num_done >= _LEAST_ROUNDS and perf_counter() > self._timed_by_s:
                break
            for j in self._generator.permutation(len(pairs)):
                trial, point = pairs[j]
                assert isinstance(trial, BuiltTrial)
                rounds[j, num_done] = trial.round(point.query)
            num_done += 1
        return [point.timed(rounds[j, :num_done]) for j, (_, point) in enumerate(pairs)]

    def verify(self, trial: Trial, point: Point) -> RecallSample:
        assert isinstance(trial, BuiltTrial)
        if self._second is None:
            self._second = Truth.of(self._vectors, self._verify, self._k, self._serving.metric)
        trial.index.set_query_params(point.query)
        return trial.recall(self._second)

    def _prepared(self, num_vectors: int) -> tuple[VectorStore, Truth]:
        """The store of a sample, under row numbers as ids, and the truth about it; one at a time
        is kept."""
        if num_vectors not in self._stores:
            self._stores.clear()
            whole = num_vectors == len(self._vectors)
            rows = np.sort(self._order[:num_vectors])
            vectors = self._vectors if whole else self._vectors[rows]
            ids = np.arange(num_vectors, dtype=np.int64)
            store = VectorStore.of(vectors, ids, self._serving.metric, self._serving.vectors_dtype)
            truth = Truth.of(vectors, self._tune, min(self._k, num_vectors), self._serving.metric)
            self._stores[num_vectors] = store, truth
        return self._stores[num_vectors]
