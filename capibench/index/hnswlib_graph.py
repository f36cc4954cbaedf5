"""The graph of its inventors' own library, to compare FAISS's with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.errors import MissingExtra
from capibench.index.approximate_index import ApproximateIndex
from capibench.index.hnsw import LADDER, MOST_LINKS, listed
from capibench.index.index import Ids
from capibench.index.metric import Metric
from capibench.index.stored_index import as_whole, check_at_least_1, check_seed
from capibench.index.vector_store import RowSet, VectorStore

try:
    import hnswlib
except ImportError as error:
    raise MissingExtra("hnswlib", "graphs", "index=hnswlib") from error


@dataclass
class HnswlibGraph(ApproximateIndex):
    """As `Hnsw`, with its own copy of the vectors in the graph. The effort is ef; candidates are
    filtered afterwards, since its own filter calls Python for each."""

    query_names: ClassVar[tuple[str, ...]] = ("ef_search",)
    learns: ClassVar[bool] = False

    num_links: int
    ef_construction: int
    ef_search: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        as_whole("num_links", self.num_links, least=2, most=MOST_LINKS)
        check_at_least_1(self, "ef_construction")
        check_seed(self)

    @property
    def takes_filter(self) -> bool:
        return False

    def _libraries(self) -> dict[str, str]:
        return {"hnswlib": version("hnswlib")}

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "hnswlib",
            "num_links": self.num_links,
            "ef_construction": self.ef_construction,
            "seed": self.seed,
        }

    def _ladder(self, name: str) -> tuple[int, ...]:
        return LADDER

    def _space(self, dimension: int) -> Any:
        return hnswlib.Index(space="l2" if self.metric is Metric.L2 else "ip", dim=dimension)

    def _learnt(self, store: VectorStore) -> Any:
        graph = self._space(store.dimension)
        graph.init_index(
            max(store.num_rows, 1),
            M=self.num_links,
            ef_construction=self.ef_construction,
            random_seed=self.seed,
        )
        return graph

    def _emptied(self, structure: Any, store: VectorStore) -> Any:
        return self._learnt(store)

    def _take_in(self, structure: Any, vectors: Vectors) -> None:
        begin = structure.get_current_count()
        needed = begin + len(vectors)
        if needed > structure.get_max_elements():
            structure.resize_index(max(needed, 2 * structure.get_max_elements()))
        rows = np.arange(begin, needed)
        structure.add_items(vectors, rows, num_threads=faiss.omp_get_max_threads())

    def _find(
        self, queries: Vectors, num_wanted: int, among: RowSet | None, query: Mapping[str, int]
    ) -> tuple[Ids, Vectors | None]:
        graph = self._structure
        effort = listed(query["ef_search"], int(graph.get_current_count()))
        graph.set_ef(max(effort, num_wanted))
        try:
            rows, _ = graph.knn_query(queries, num_wanted, num_threads=faiss.omp_get_max_threads())
        except RuntimeError:  # the graph reaches fewer: its way to say so, for all queries at once
            return np.full((len(queries), num_wanted), -1, dtype=np.int64), None
        return rows.astype(np.int64), None

    def _write_structure(self, path: Path) -> None:
        self._structure.save_index(str(path))

    def _read_structure(self, path: Path, store: VectorStore) -> Any:
        graph = self._space(store.dimension)
        graph.load_index(str(path), max_elements=max(store.num_rows, 1))
        if graph.get_current_count() != store.num_rows:
            raise TypeError(
                f"it has {graph.get_current_count()} vectors; expected {store.num_rows}"
            )
        return graph

    def _measured_bytes(self) -> int:
        return int(self._structure.index_file_size())
