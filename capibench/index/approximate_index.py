"""Searching a structure for candidates, and what must hold although it is only approximate."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.filter_plan import (
    MAX_ATTEMPTS,
    NUM_QUERIES_TO_TIME,
    WIDENING,
    FilterPlanner,
    relative_cost,
)
from capibench.index.index import Ids
from capibench.index.saved import Saved
from capibench.index.stored_index import BuildCost, StoredIndex, as_whole, check_at_least_1
from capibench.index.vector_store import RowSet, VectorStore

# A structure that learnt from so many times fewer vectors than it holds learns anew: each vector
# is so taken in a bounded number of times on average (a geometric series), like the doubling of
# a list.
_GROWTH_BEFORE_RETRAINING = 4
# Scanning so few rows (about 50 µs at 384 dimensions) is as quick as asking any structure.
_NUM_ROWS_ALWAYS_SCANNED = 1_000
# Candidates asked for beyond the expected need where a filter is applied after the search.
_POST_FILTER_MARGIN = 1.25
# Of these, so many times the wanted number are kept: the neighbours that a filter leaves lie closer
# together, so that the errors of codes confuse more of them.
_POST_FILTER_KEPT = 2
# What was measured holds until the number of vectors has changed by this factor.
_SAME_SIZE = 1.1


@dataclass
class ApproximateIndex(StoredIndex):
    """A structure names candidate rows; the store says what they are worth.

    Promised of every type, whatever its structure can do:
    - no removed or disallowed id is returned, and no id twice;
    - min(k, number of allowed vectors) ids are returned. A query for which the structure finds
      fewer is answered by exact scan;
    - scores are those of the exact vectors.

    A filter that allows the share s of the vectors is answered by the structure at 1 / s times its
    usual effort, since among as many more candidates the wanted number is allowed. A query for
    which it finds fewer allowed candidates than it would re-rank without a filter has come short,
    because the filter forbids what lies near it: it is asked again as if s were a quarter, and in
    the end answered by exact scan. Which of these attempts are worth making, `filter_plan` decides
    by what they cost, measured at the first search with a filter of that size for each k and size
    of batch (about three scans' time), and by how often they come short. Where
    `exact_filter_share` is a number nothing is measured: attempts are made as long as they assume
    a greater share.
    """

    query_names: ClassVar[tuple[str, ...]]  # fields that are query parameters, influential first
    learns: ClassVar[bool]  # from the vectors: it may come to fit them badly

    exact_filter_share: float | None
    _structure: Any = field(init=False, repr=False, default=None)
    _num_learnt_from: int = field(init=False, repr=False, default=0)
    _cost: BuildCost | None = field(init=False, repr=False, default=None)
    _query: dict[str, int] = field(init=False, repr=False)
    _structure_size: int | None = field(init=False, repr=False, default=None)
    _planner: FilterPlanner = field(init=False, repr=False, default_factory=FilterPlanner)
    _num_planned_for: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.exact_filter_share
        if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
            raise ValueError(f"exact_filter_share: got {share!r}; expected 0 to 1, or null")
        check_at_least_1(self, *self.query_names)
        self._query = {name: getattr(self, name) for name in self.query_names}

    @property
    def takes_filter(self) -> bool:
        """Whether the structure itself can be told which rows are wanted."""
        return True

    @abstractmethod
    def _learnt(self, store: VectorStore) -> Any:
        """An empty structure for vectors like these.

        Raises:
            ValueError: a parameter does not fit the vectors.
        """

    @abstractmethod
    def _emptied(self, structure: Any, store: VectorStore) -> Any:
        """The same structure without its vectors, keeping what it learnt."""

    @abstractmethod
    def _take_in(self, structure: Any, vectors: Vectors) -> None:
        """Give the structure's next rows to [m, d] float32 vectors."""

    @abstractmethod
    def _find(
        self, queries: Vectors, num_wanted: int, among: RowSet | None, query: Mapping[str, int]
    ) -> tuple[Ids, Vectors | None]:
        """Candidate rows [m, num_wanted], -1 last, and their scores if these are exact.

        Args:
            queries: [m, d].
            num_wanted: candidates per query.
            among: only these rows; None where all are allowed or the structure takes no filter.
            query: the query parameters to use.
        """

    @abstractmethod
    def _write_structure(self, path: Path) -> None:
        """Write one file."""

    @abstractmethod
    def _read_structure(self, path: Path, store: VectorStore) -> Any:
        """What `_write_structure` wrote.

        Raises:
            RuntimeError or TypeError: it cannot be read, or is not of this type.
        """

    @abstractmethod
    def _measured_bytes(self) -> int:
        """Bytes of the structure in memory, beside the mapped vectors."""

    def _ladder(self, name: str) -> tuple[int, ...]:
        """Values of a query parameter that are worth trying. This one is for `rerank`: powers of
        two, up to the first at which 10 results come from all vectors."""
        most = 64 if self._store is None else max(1, self.num_vectors // 10)
        return tuple(2**i for i in range(7) if i == 0 or 2 ** (i - 1) < most)

    def _settled(self) -> None:
        """Called whenever the structure holds all rows of the store."""

    def query_params(self) -> dict[str, int]:
        return dict(self._query)

    def query_ladders(self) -> dict[str, tuple[int, ...]]:
        return {name: self._ladder(name) for name in self.query_names}

    def set_query_params(self, params: Mapping[str, int]) -> None:
        for name, value in params.items():
            if name not in self._query:
                raise ValueError(
                    f"{name}: got {value}; expected one of {', '.join(self.query_names)}"
                )
        self._query |= {name: as_whole(name, value) for name, value in params.items()}
        self._num_planned_for = 0

    @property
    def build_cost(self) -> BuildCost | None:
        return self._cost

    def structure_bytes(self) -> int:
        """Bytes of the structure, counted by writing it out once."""
        if self._structure_size is None:
            _ = self.store
            self._structure_size = self._measured_bytes()
        return self._structure_size

    def saved_facts(self) -> dict[str, Any]:
        cost = self._cost
        return {
            **super().saved_facts(),
            "num_learnt_from": self._num_learnt_from,
            "build_cost": None if cost is None else [cost.train_s, cost.add_s],
        }

    def saved_files(self) -> dict[str, Callable[[Path], None]]:
        return {**super().saved_files(), "structure": self._write_structure}

    def _restored(self, store: VectorStore, saved: Saved, path: Path) -> None:
        try:
            structure = self._read_structure(saved.files["structure"], store)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"{path}: not an index of type {type(self).__name__}: {error}"
            ) from error
        cost = saved.facts["build_cost"]
        self._store, self._structure = store, structure
        self._num_learnt_from = saved.facts["num_learnt_from"]
        self._cost = None if cost is None else BuildCost(*cost)
        self._structure_size = None
        self._num_planned_for = 0
        self._settled()

    def _rebuilt(self, store: VectorStore, *, retrain: bool) -> None:
        begin_s = perf_counter()
        if (retrain and store.num_live) or self._structure is None:
            structure, num_learnt_from = self._learnt(store), store.num_live
        else:
            structure, num_learnt_from = (
                self._emptied(self._structure, store),
                self._num_learnt_from,
            )
        learnt_s = perf_counter()
        for block in store.blocks():
            if len(block):
                self._take_in(structure, block)
        self._cost = BuildCost(learnt_s - begin_s, perf_counter() - learnt_s)
        self._store, self._structure = store, structure
        self._num_learnt_from, self._structure_size = num_learnt_from, None
        self._num_planned_for = 0
        self._settled()

    def _append(self, vectors: Vectors) -> None:
        self._take_in(self._structure, vectors)
        self._structure_size = None
        if self.learns and self.num_vectors > _GROWTH_BEFORE_RETRAINING * self._num_learnt_from:
            self.rebuild()

    def _nearest(self, queries: Vectors, k: int, among: RowSet | None) -> tuple[Ids, Vectors]:
        num_allowed = self.store.num_live if among is None else len(among.rows)
        num_wanted = k * self._query.get("rerank", 1)
        if num_allowed <= num_wanted:  # all would be candidates
            return self.store.scan(queries, k, among)
        if among is None:
            live = self.store.live_rows()
            needed = k if live is None or self.takes_filter else num_wanted
            rows, scores, short = self._attempt(queries, k, live, 1.0, needed)
            if short.any():
                rows[short], scores[short] = self.store.scan(queries[short], k, None)
            return rows, scores
        if num_allowed <= _NUM_ROWS_ALWAYS_SCANNED:
            return self.store.scan(queries, k, among)
        return self._nearest_among(queries, k, among)

    def _nearest_among(self, queries: Vectors, k: int, among: RowSet) -> tuple[Ids, Vectors]:
        """Attempts as planned; what comes short of the last is scanned."""
        attempts = self._attempts(queries, k, among)
        if not attempts:
            return self.store.scan(queries, k, among)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        num_wanted, share = k * self._query.get("rerank", 1), len(among.rows) / self.store.num_live
        key = k, min(len(queries), NUM_QUERIES_TO_TIME).bit_length()
        left: Ids = np.arange(len(queries))
        for i in attempts:
            found, found_scores, short = self._attempt(
                queries[left], k, among, share / WIDENING**i, num_wanted
            )
            rows[left], scores[left] = found, found_scores
            left = left[short]
            self._planner.record(among, share, key, i, short=len(left) > 0)
            if not len(left):
                return rows, scores
        rows[left], scores[left] = self.store.scan(queries[left], k, among)
        return rows, scores

    def _attempts(self, queries: Vectors, k: int, among: RowSet) -> list[int]:
        """Numbers of the attempts to make; each assumes a share `WIDENING` times smaller."""
        store, num_wanted = self.store, k * self._query.get("rerank", 1)
        share = len(among.rows) / store.num_live
        # An attempt that asks for every vector is the last that differs.
        widest = 1 + math.ceil(math.log(len(among.rows) / num_wanted, WIDENING))
        most = min(MAX_ATTEMPTS, widest)
        if self.exact_filter_share is not None:
            return [i for i in range(most) if share / WIDENING**i > self.exact_filter_share]
        then = self._num_planned_for
        if not store.num_live / _SAME_SIZE <= then <= store.num_live * _SAME_SIZE:
            self._planner, self._num_planned_for = FilterPlanner(), store.num_live
        asked = queries[:NUM_QUERIES_TO_TIME]

        def cost(attempt: int) -> float:
            return relative_cost(
                lambda: store.scan(asked, k, among),
                lambda num: self._attempt(
                    asked[:num], k, among, share / WIDENING**attempt, num_wanted
                ),
                len(asked),
            )

        return self._planner.attempts(among, share, (k, len(asked).bit_length()), most, cost)

    def _attempt(
        self, queries: Vectors, k: int, among: RowSet | None, share: float, needed: int
    ) -> tuple[Ids, Vectors, npt.NDArray[np.bool_]]:
        """Rows and scores [m, k], and which queries came short [m]: of `needed` candidates."""
        rows, scores = self._candidates(queries, k * self._query.get("rerank", 1), among, share)
        short = rows[:, needed - 1] < 0
        if scores is None:
            rows, scores = self.store.rescore(queries, rows, k)
        return rows, scores, short

    def _candidates(
        self, queries: Vectors, num_wanted: int, among: RowSet | None, share: float
    ) -> tuple[Ids, Vectors | None]:
        """As `_find`, from any structure. `among` holds the live rows that are allowed; as if they
        were `share` of all live ones wherever the structure looks."""
        query = self._query
        if share < 1:
            query = {n: v if n == "rerank" else math.ceil(v / share) for n, v in query.items()}
        if among is None or self.takes_filter:
            return self._find(queries, num_wanted, among, query)
        expected = num_wanted * among.num_rows / (share * self.store.num_live)
        enough = math.ceil(_POST_FILTER_MARGIN * expected) + 8
        # A graph's candidates are all compared while it is searched: more of them cost nothing.
        enough = min(max(enough, query.get("ef_search", 0)), among.num_rows)
        rows, _ = self._find(queries, enough, None, query)
        unwanted = (rows < 0) | ~among.mask[rows]
        order = np.argsort(unwanted, axis=1, kind="stable")[:, : _POST_FILTER_KEPT * num_wanted]
        rows = np.where(unwanted, np.int64(-1), rows)
        return np.take_along_axis(rows, order, axis=1), None
