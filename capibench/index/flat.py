"""Exact search: the baseline that every other index must beat, and the truth it is held to."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.stored_index import StoredIndex
from capibench.index.vector_store import RowSet, VectorStore


@dataclass
class Flat(StoredIndex):
    """Compares each query with every vector, where it lies in the store. Recall is 1 by
    construction (of the float16 vectors, where they are kept so)."""

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {"type": "flat"}

    def _rebuilt(self, store: VectorStore, *, retrain: bool) -> None:
        self._store = store

    def _append(self, vectors: Vectors) -> None:
        """Nothing: the store has them."""

    def _nearest(self, queries: Vectors, k: int, among: RowSet | None) -> tuple[Ids, Vectors]:
        return self.store.scan(queries, k, among)
