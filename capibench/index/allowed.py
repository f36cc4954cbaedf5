"""A filter: which ids a search may return."""

from __future__ import annotations

import weakref

import numpy as np

from capibench.index.index import Ids
from capibench.index.vector_store import RowSet, VectorStore


class Allowed:
    """Ids that a search may return, prepared once for many searches.

    It belongs to no index: ids that an index does not hold are simply not found there. What it
    costs to look the ids up is paid at the first search of an index and again after that index
    has changed.
    """

    def __init__(self, ids: Ids) -> None:
        """Raises: ValueError if `ids` are not int64 [n]; ids may repeat."""
        if not isinstance(ids, np.ndarray):
            raise ValueError(f"allowed: got {type(ids).__name__}; expected an int64 array [n]")
        if ids.dtype != np.int64 or ids.ndim != 1:
            raise ValueError(
                f"allowed: got {ids.dtype} of shape {ids.shape}; expected int64 ids of shape [n]"
            )
        self.ids = np.unique(ids)
        self._store: weakref.ref[VectorStore] | None = None
        self._version = -1
        self._rows: RowSet | None = None

    def rows_in(self, store: VectorStore) -> RowSet:
        """The rows of `store`, as it is now, that bear these ids."""
        same = self._store is not None and self._store() is store
        if self._rows is None or not same or self._version != store.version:
            rows = store.rows_of(self.ids)
            self._rows = RowSet(np.sort(rows[rows >= 0]), store.num_rows)
            self._store, self._version = weakref.ref(store), store.version
        return self._rows
