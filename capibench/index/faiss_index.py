"""What the FAISS structures have in common. They name rows of the store, never the caller's ids."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.approximate_index import ApproximateIndex
from capibench.index.exact_scan import faiss_metric
from capibench.index.index import Ids
from capibench.index.metric import Metric
from capibench.index.vector_store import RowSet, VectorStore

# FAISS's own rule for k-means that is not starved of points.
_MIN_VECTORS_PER_LIST = 39


@dataclass
class FaissIndex(ApproximateIndex):
    """A type says how its structure is made, recognised and asked."""

    exact_scores: ClassVar[bool]  # the structure compares whole vectors: no need to score again

    # Search parameters without filter: making them takes 5 µs, a twentieth of a fast search.
    _unfiltered: Any = field(init=False, repr=False, default=None)

    @abstractmethod
    def _is_mine(self, structure: Any) -> bool:
        """Whether a structure that was read is of this type."""

    def _parameters(self, query: Mapping[str, int], selector: Any) -> Any:
        """FAISS's search parameters; `selector` None: all rows. This one is for a structure that
        has none of its own."""
        return None if selector is None else faiss.SearchParameters(sel=selector)

    def _dimension(self, dimension: int) -> int:
        """Dimension of the structure for vectors of `dimension`; zeros fill the difference, which
        change neither inner products nor distances."""
        return dimension

    def set_query_params(self, params: Mapping[str, int]) -> None:
        super().set_query_params(params)
        self._unfiltered = None

    def _libraries(self) -> dict[str, str]:
        return {"faiss": faiss.__version__}

    def _emptied(self, structure: Any, store: VectorStore) -> Any:
        structure.reset()
        return structure

    def _take_in(self, structure: Any, vectors: Vectors) -> None:
        structure.add(filled_up(vectors, structure.d))
        self._unfiltered = None  # a limit in it may be the number of rows

    def _find(
        self, queries: Vectors, num_wanted: int, among: RowSet | None, query: Mapping[str, int]
    ) -> tuple[Ids, Vectors | None]:
        structure = self._structure
        if among is not None:
            parameters = self._parameters(query, faiss.IDSelectorBitmap(among.bits))
        elif query is self._query:
            self._unfiltered = self._unfiltered or self._parameters(query, None)
            parameters = self._unfiltered
        else:
            parameters = self._parameters(query, None)
        distances, rows = structure.search(
            filled_up(queries, structure.d), num_wanted, params=parameters
        )
        if not self.exact_scores:
            return rows, None
        return rows, -distances if self.metric is Metric.L2 else distances

    def _write_structure(self, path: Path) -> None:
        faiss.write_index(self._structure, str(path))

    def _read_structure(self, path: Path, store: VectorStore) -> Any:
        structure = faiss.read_index(str(path))
        found = (structure.d, structure.ntotal, structure.metric_type)
        expected = (self._dimension(store.dimension), store.num_rows, faiss_metric(self.metric))
        if not self._is_mine(structure) or found != expected:
            raise TypeError(f"it is {type(structure).__name__} of {found}; expected {expected}")
        self._unfiltered = None
        return structure

    def _measured_bytes(self) -> int:
        return int(faiss.serialize_index(self._structure).nbytes)


def auto_nlist(num_vectors: int, lists_per_root: int) -> int:
    """About `lists_per_root`·√n lists, but at least 39 vectors for each where that leaves any
    choice."""
    wanted = round(lists_per_root * math.sqrt(num_vectors))
    return max(1, min(wanted, num_vectors // _MIN_VECTORS_PER_LIST))


def resolved_nlist(nlist: int | None, num_vectors: int, lists_per_root: int) -> int:
    """`nlist`, or the automatic one for None; ValueError where there are fewer vectors."""
    if nlist is None:
        return auto_nlist(num_vectors, lists_per_root)
    if nlist > num_vectors:
        raise ValueError(
            f"nlist: got {nlist}; expected at most the number of vectors, {num_vectors}"
        )
    return nlist


def coarse_quantizer(dimension: int, metric: Metric) -> Any:
    """What compares a query with the centres of inverted lists."""
    if metric is Metric.L2:
        return faiss.IndexFlatL2(dimension)
    return faiss.IndexFlatIP(dimension)


def set_clustering(parameters: Any, *, seed: int, num_iterations: int, per_centroid: int) -> None:
    """Set up a k-means. That it is starved FAISS would only say on standard error."""
    parameters.seed = seed
    parameters.niter = num_iterations
    parameters.max_points_per_centroid = per_centroid
    parameters.min_points_per_centroid = 1


def powers_of_two(last: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `last`, then `last` itself."""
    return (*(2**i for i in range((last - 1).bit_length())), last)


def repeated(vectors: Vectors, num_needed: int) -> Vectors:
    """`vectors` over and over where there are fewer than a codebook has entries: each vector then
    is an entry, and its code loses nothing."""
    if len(vectors) >= num_needed:
        return vectors
    return np.ascontiguousarray(np.resize(vectors, (num_needed, vectors.shape[1])))


def filled_up(vectors: Vectors, dimension: int) -> Vectors:
    missing = dimension - vectors.shape[1]
    return vectors if missing == 0 else np.pad(vectors, ((0, 0), (0, missing)))
