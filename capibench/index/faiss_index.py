"""What the FAISS indexes have in common: checked input, caller's ids, search, one file on disk.

Thread counts are the process's business (the runner pins them), not an index's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.index import Ids

# Number of queries from which FAISS compares by matrix product instead of one by one. Its own
# default makes batched exact comparisons up to 11x slower than they can be (n=20,000, d=384, one
# thread: 300 queries in 319 ms against 29 ms). Single queries must stay sequential (1.1 against
# 2.7 ms); the two meet at 3 to 4 queries, whatever n above 1,000.
_NUM_QUERIES_FOR_BLAS = 4
# FAISS 1.15 compares queries times dimension with its threshold (found by bisection: the switch
# is at 16 * d for 16 queries), whose default then is 128,000; older ones compare queries, with 20.
_THRESHOLD_COUNTS_NUMBERS = faiss.cvar.distance_compute_blas_threshold > 1_000


@dataclass
class FaissIndex(ABC):
    """Inner product on unit vectors under the caller's ids; a type says how it is made."""

    modeled: ClassVar[bool] = False

    max_batch_size: int
    _index: Any = field(init=False, repr=False, default=None)
    _size_bytes: int | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_batch_size")

    @abstractmethod
    def build_params(self) -> dict[str, int | float | str | None]:
        """Everything that changes the built index, the library's version included."""

    @abstractmethod
    def _make(self, vectors: Vectors) -> Any:
        """An empty, trained FAISS index that takes ids, for vectors like these."""

    @abstractmethod
    def _adopt(self, index: Any) -> None:
        """Check that `index` is of this type, and give it the current effort.

        Raises:
            TypeError: it is of another type.
        """

    def build(self, vectors: Vectors, ids: Ids) -> None:
        """Train if needed and add [n, d] float32 `vectors` under unique int64 `ids` [n].

        Raises:
            ValueError: wrong shape or type, no vectors, NaN or infinity, or an id used twice.
        """
        _check_vectors("vectors", vectors)
        if len(vectors) == 0:
            raise ValueError("vectors: got none; expected at least 1")
        check_ids(ids, len(vectors))
        _use_blas_for_batches(vectors.shape[1])
        index = self._make(vectors)
        self._adopt(index)
        index.add_with_ids(np.ascontiguousarray(vectors), np.ascontiguousarray(ids))
        self._index, self._size_bytes = index, None

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """Ids [n, k] and similarities [n, k], best first; -1 pads where fewer than k are found.

        Raises:
            ValueError: wrong shape, type or dimension, NaN or infinity, or k below 1.
        """
        index = self._built()
        _check_vectors("queries", queries)
        if queries.shape[1] != index.d:
            raise ValueError(f"queries: got dimension {queries.shape[1]}; expected {index.d}")
        if k < 1:
            raise ValueError(f"k: got {k}; expected at least 1")
        similarities, ids = index.search(np.ascontiguousarray(queries), k)
        return ids, similarities

    def size_bytes(self) -> int:
        """Bytes of the searchable structure, vectors included, as serialised."""
        index = self._built()
        if self._size_bytes is None:
            self._size_bytes = int(faiss.serialize_index(index).nbytes)
        return self._size_bytes

    def save(self, path: Path) -> None:
        """Write one file, in FAISS's own format."""
        faiss.write_index(self._built(), str(path))

    def load(self, path: Path) -> None:
        """Read what `save` wrote; the effort is this object's, not the file's.

        Raises:
            DataError: the file is no index, or one of another type.
        """
        try:
            index = faiss.read_index(str(path))
            self._adopt(index)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"{path}: not an index of type {type(self).__name__}: {error}"
            ) from error
        _use_blas_for_batches(index.d)
        self._index, self._size_bytes = index, path.stat().st_size

    def describe(self) -> dict[str, str | int | float]:
        described: dict[str, str | int | float] = {
            name: value for name, value in self.build_params().items() if value is not None
        }
        if self._index is not None:
            described |= {"num_vectors": int(self._index.ntotal), "dimension": int(self._index.d)}
        return described

    def _built(self) -> Any:
        if self._index is None:
            raise RuntimeError("the index is neither built nor loaded")
        return self._index


def _use_blas_for_batches(dimension: int) -> None:
    """The setting is global to the process, hence the same for every index type, and for IVF's
    choice of lists too."""
    per_query = dimension if _THRESHOLD_COUNTS_NUMBERS else 1
    faiss.cvar.distance_compute_blas_threshold = _NUM_QUERIES_FOR_BLAS * per_query


def check_at_least_1(component: object, *names: str) -> None:
    """Range check of the fields `names`, for `__post_init__`."""
    for name in names:
        if getattr(component, name) < 1:
            raise ValueError(f"{name}: got {getattr(component, name)}; expected at least 1")


def check_ids(ids: Ids, num_vectors: int) -> None:
    """Raise ValueError unless `ids` are `num_vectors` unique int64 of at least 0 (-1 pads)."""
    if ids.dtype != np.int64 or ids.shape != (num_vectors,):
        raise ValueError(
            f"ids: got {ids.dtype} of shape {ids.shape}; expected int64 of shape ({num_vectors},)"
        )
    if num_vectors and int(ids.min()) < 0:
        raise ValueError(f"ids: got {int(ids.min())}; expected at least 0")
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != num_vectors:
        raise ValueError(f"ids: got {int(values[counts > 1][0])} twice; expected unique ids")


def _check_vectors(name: str, vectors: npt.NDArray[np.generic]) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] < 1:
        raise ValueError(
            f"{name}: got {vectors.dtype} of shape {vectors.shape}; expected float32 [n, dimension]"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"{name}: got NaN or infinity; expected finite numbers")
