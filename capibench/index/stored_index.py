"""What every index type can do, whatever structure it searches: change, filter, save, say its size.

Vectors and ids lie in a `VectorStore`. A type adds at most a structure that names candidate rows.
This is the seam for whoever tunes or keeps indexes: `build_over` shares one store among many
candidates, `query_params`, `query_ladders` and `set_query_params` move a built one, `build_cost`,
`structure_bytes` and `size_bytes` are measured.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from capibench.config import build, node_of
from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.exact_scan import use_blas_for_batches
from capibench.index.index import Ids
from capibench.index.metric import Metric
from capibench.index.saved import INDEX_KIND, Saved, load_directory, save_directory
from capibench.index.vector_store import RowSet, VectorStore, VectorType

_MOST = 2**31 - 1  # that the libraries' own whole numbers hold


@dataclass(frozen=True, slots=True)
class BuildCost:
    """Seconds that the structure took: to learn its parameters, and to take in the vectors."""

    train_s: float
    add_s: float


@dataclass
class StoredIndex(ABC):
    """Exact vectors under the caller's ids; a type says how candidates among them are found."""

    modeled: ClassVar[bool] = False

    max_batch_size: int
    metric: Metric
    vectors_dtype: VectorType
    max_deleted_share: float
    _store: VectorStore | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_batch_size")
        if not 0 <= self.max_deleted_share < 1:
            raise ValueError(
                f"max_deleted_share: got {self.max_deleted_share}; expected 0 or more, below 1"
            )

    @abstractmethod
    def _type_params(self) -> dict[str, int | float | str | None]:
        """`type` and whatever else of this type changes the built index."""

    def _libraries(self) -> dict[str, str]:
        """Installed version of each library whose format the structure has."""
        return {}

    @abstractmethod
    def _rebuilt(self, store: VectorStore, *, retrain: bool) -> None:
        """Make the structure (if any) hold all rows of `store`; take the store over."""

    @abstractmethod
    def _append(self, vectors: Vectors) -> None:
        """Let the structure take in [m, d] vectors that were just given the store's next rows."""

    @abstractmethod
    def _nearest(self, queries: Vectors, k: int, among: RowSet | None) -> tuple[Ids, Vectors]:
        """Rows and scores [m, k], best first, of live rows `among` (None: all); -1 pads only
        where fewer than k are allowed. `queries` come from the store's `comparable`."""

    def structure_bytes(self) -> int:
        """Bytes that the type holds in memory beside the memory-mapped vectors."""
        return 0

    @property
    def build_cost(self) -> BuildCost | None:
        """What the last build, here or before it was saved, cost; None before any."""
        return None

    def query_params(self) -> dict[str, int]:
        """The query parameters as set; empty where search is exact."""
        return {}

    def query_ladders(self) -> dict[str, tuple[int, ...]]:
        """Ascending values of each query parameter that are worth trying, the most influential
        parameter first. Known in full once the index is built."""
        return {}

    def set_query_params(self, params: Mapping[str, int]) -> None:
        """Set some query parameters of the next searches; never rebuilds.

        Raises:
            ValueError: no such parameter, or a value below 1.
        """
        for name, value in params.items():
            raise ValueError(
                f"{name}: got {value}; expected none, since exact search has no effort"
            )

    @property
    def effort(self) -> int | None:
        """The most influential query parameter, as set; None where search is exact."""
        return next(iter(self.query_params().values()), None)

    def effort_ladder(self) -> tuple[int, ...]:
        """Ascending values of the effort that are worth trying; empty where search is exact."""
        return next(iter(self.query_ladders().values()), ())

    def set_effort(self, effort: int) -> None:
        """Set the most influential query parameter; ValueError where search is exact."""
        self.set_query_params({next(iter(self.query_params()), "effort"): effort})

    def build_params(self) -> dict[str, int | float | str | None]:
        """Everything that changes the built index, the library's version included."""
        return {
            **self._type_params(),
            **self._libraries(),
            "metric": self.metric.value,
            "vectors_dtype": self.vectors_dtype,
        }

    def build(self, vectors: Vectors, ids: Ids) -> None:
        """Copy [n, d] float32 `vectors` under unique int64 `ids` [n], and train if needed.

        Raises:
            ValueError: what `VectorStore.of` refuses, or a parameter that does not fit these
                vectors. The index is then what it was before.
        """
        self.build_over(VectorStore.of(vectors, ids, self.metric, self.vectors_dtype))

    def build_over(self, store: VectorStore) -> None:
        """Build on vectors that lie in a store already, so that several candidates share them.
        An index that adds or removes changes the store: do so only where it is not shared."""
        if (store.metric, store.dtype) != (self.metric, self.vectors_dtype):
            raise ValueError(
                f"store: got {store.metric.value}, {store.dtype}; expected {self.metric.value}, "
                f"{self.vectors_dtype}"
            )
        use_blas_for_batches(store.dimension)
        self._rebuilt(store, retrain=True)

    @property
    def store(self) -> VectorStore:
        """The exact vectors; RuntimeError before `build` or `load`."""
        if self._store is None:
            raise RuntimeError("the index is neither built nor loaded")
        return self._store

    @property
    def num_vectors(self) -> int:
        """Vectors that a search can find."""
        return self.store.num_live

    def search(
        self, queries: Vectors, k: int, allowed: Allowed | None = None
    ) -> tuple[Ids, Vectors]:
        """Ids and scores [m, k] of the nearest vectors, best first.

        Args:
            queries: [m, d] float32.
            k: at most the number of vectors.
            allowed: only these ids; where it allows fewer than k, -1 pads with score -inf.

        Raises:
            ValueError: wrong shape, type or dimension, NaN or infinity, a zero vector under the
                cosine, or a k that is no whole number from 1 to the number of vectors.
        """
        store = self.store
        prepared = store.comparable(queries)
        k = as_whole("k", k)
        if k > store.num_live:
            raise ValueError(
                f"k: got {k}; expected at most the number of vectors, {store.num_live}"
            )
        if allowed is None:
            rows, scores = self._nearest(prepared, k, None)
            return store.ids_in(rows), scores
        among = allowed.rows_in(store)
        if not len(among.rows):
            shape = (len(queries), k)
            return np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
        rows, scores = self._nearest(prepared, k, among)
        return store.ids_at(rows), np.where(rows < 0, np.float32(-np.inf), scores)

    def add(self, vectors: Vectors, ids: Ids) -> None:
        """Take in [m, d] further vectors under new ids.

        Raises:
            ValueError: what `build` refuses, another dimension, or an id that is in the index.
                Nothing is added.
        """
        store = self.store
        begin = store.num_rows
        store.add(vectors, ids)
        if len(ids):
            self._append(store.rows_from(begin))

    def remove(self, ids: Ids) -> None:
        """Forget vectors. Their rows stay behind, empty, until more than `max_deleted_share` of
        all rows are empty; then the index is compacted.

        Raises:
            ValueError: an id that is not in the index, or is given twice. Nothing is removed.
        """
        store = self.store
        store.remove(ids)
        if store.num_rows - store.num_live > self.max_deleted_share * store.num_rows:
            self.compact()

    def compact(self) -> None:
        """Drop empty rows, from the store and from the structure, which is not trained anew."""
        self._rebuilt(self.store.compacted(), retrain=False)

    def rebuild(self) -> None:
        """Build anew from the vectors: what was learnt from them fits them again."""
        self._rebuilt(self.store.compacted(), retrain=True)

    def size_bytes(self) -> int:
        """Bytes of vectors, ids and structure, as written."""
        return self.store.num_bytes + self.structure_bytes()

    def describe(self) -> dict[str, str | int | float]:
        described: dict[str, str | int | float] = {
            name: value for name, value in self.build_params().items() if value is not None
        }
        described |= self.query_params()
        if self._store is not None:
            described |= {"num_vectors": self.num_vectors, "dimension": self._store.dimension}
        return described

    def saved_facts(self) -> dict[str, Any]:
        """What `load` must know beside the files; JSON."""
        libraries = self._libraries()
        params = {n: v for n, v in self.build_params().items() if n not in libraries}
        return {"component": node_of(self), "params": params, "libraries": libraries}

    def saved_files(self) -> dict[str, Callable[[Path], None]]:
        """Name → a function that writes the file. For whoever saves an index together with other
        things (`saved.save_directory`)."""
        store = self.store
        return {"vectors": store.write_vectors, "ids": store.write_ids}

    def save(self, path: Path) -> None:
        """Write a directory, replacing in one step what was saved there before."""
        save_directory(path, INDEX_KIND, self.saved_facts(), self.saved_files())

    def load(self, path: Path) -> None:
        """Read what `save` wrote; the query parameters are this object's, not the directory's.

        Raises:
            DataError: nothing whole is saved there, or an index of other build parameters, or one
                written by a later version of a library. The index is then what it was before.
        """
        self.load_saved(load_directory(path, INDEX_KIND), path)

    def load_saved(self, saved: Saved, path: Path) -> None:
        """`load`, for whoever saved an index together with other things to `path`."""
        params, libraries = saved.facts["params"], self._libraries()
        expected = {n: v for n, v in self.build_params().items() if n not in libraries}
        for name in sorted(params.keys() | expected.keys(), key=lambda name: name != "type"):
            if params.get(name) != expected.get(name):
                raise DataError(
                    f"{path}: not an index of type {type(self).__name__} with these parameters: "
                    f"got {name}={params.get(name)}; expected {expected.get(name)}"
                )
        for library, written in saved.facts["libraries"].items():
            installed = libraries[library]
            if _version(written) > _version(installed):
                raise DataError(
                    f"{path}: written by {library} {written}; expected at most the installed "
                    f"{installed}: update {library}, or build the index anew"
                )
        store = VectorStore.read(saved.files["vectors"], saved.files["ids"], self.metric)
        use_blas_for_batches(store.dimension)
        self._restored(store, saved, path)

    def _restored(self, store: VectorStore, saved: Saved, path: Path) -> None:
        """Take over a loaded store, with the structure that was saved beside it."""
        self._store = store


def load_index(path: Path) -> Any:
    """The index saved at `path`, of whatever type and parameters it was: a `StoredIndex`, or a
    `hybrid_text.HybridText`.

    Raises:
        DataError: as `StoredIndex.load`, or a modeled index, which has no vectors.
    """
    saved = load_directory(path, INDEX_KIND)
    if "component" not in saved.facts:
        raise DataError(f"{path}: got a modeled index; expected one with vectors")
    index = build(saved.facts["component"], INDEX_KIND)
    index.load_saved(saved, path)
    return index


def as_whole(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """`value`, NumPy's too, as an int; ValueError unless it is a whole number in these bounds."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and least <= value <= most:
        return int(value)
    bounded = most < _MOST or (whole and value > most)
    bounds = f"{least} to {most}" if bounded else f"at least {least}"
    raise ValueError(
        f"{name}: got {value!r}; expected {'' if whole else 'a whole number, '}{bounds}"
    )


def check_at_least_1(component: object, *names: str) -> None:
    """Range check of the fields `names`, for `__post_init__`."""
    for name in names:
        as_whole(name, getattr(component, name))


def check_seed(component: Any) -> None:
    """Range check of the field `seed`, for `__post_init__`."""
    as_whole("seed", component.seed, least=0)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
