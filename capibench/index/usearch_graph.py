"""The graph of the usearch library, to compare FAISS's with."""

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
from capibench.index.stored_index import as_whole, check_at_least_1
from capibench.index.vector_store import RowSet, VectorStore

try:
    from usearch.index import Index as UsearchIndex
except ImportError as error:
    raise MissingExtra("usearch", "graphs", "index=usearch") from error


@dataclass
class UsearchGraph(ApproximateIndex):
    """As `Hnsw`, with its own copy of the vectors, in the number type given. The effort is
    usearch's expansion; candidates are filtered afterwards."""

    query_names: ClassVar[tuple[str, ...]] = ("ef_search",)
    learns: ClassVar[bool] = False

    num_links: int
    ef_construction: int
    ef_search: int
    graph_dtype: str

    def __post_init__(self) -> None:
        super().__post_init__()
        as_whole("num_links", self.num_links, least=2, most=MOST_LINKS)
        check_at_least_1(self, "ef_construction")
        if self.graph_dtype not in ("f32", "f16", "bf16", "i8"):
            raise ValueError(
                f"graph_dtype: got {self.graph_dtype!r}; expected f32, f16, bf16 or i8"
            )
        if self.graph_dtype == "i8" and self.metric is not Metric.COSINE:
            raise ValueError("graph_dtype: got i8, which is for metric=cosine only")

    @property
    def takes_filter(self) -> bool:
        return False

    def _libraries(self) -> dict[str, str]:
        return {"usearch": version("usearch")}

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "usearch",
            "num_links": self.num_links,
            "ef_construction": self.ef_construction,
            "graph_dtype": self.graph_dtype,
        }

    def _ladder(self, name: str) -> tuple[int, ...]:
        return LADDER

    def _learnt(self, store: VectorStore) -> Any:
        names = {Metric.COSINE: "cos", Metric.IP: "ip", Metric.L2: "l2sq"}
        return UsearchIndex(
            ndim=store.dimension,
            metric=names[self.metric],
            dtype=self.graph_dtype,
            connectivity=self.num_links,
            expansion_add=self.ef_construction,
            expansion_search=self.ef_search,
        )

    def _emptied(self, structure: Any, store: VectorStore) -> Any:
        return self._learnt(store)

    def _take_in(self, structure: Any, vectors: Vectors) -> None:
        begin = len(structure)
        rows = np.arange(begin, begin + len(vectors), dtype=np.uint64)
        structure.add(rows, vectors, threads=faiss.omp_get_max_threads())

    def _find(
        self, queries: Vectors, num_wanted: int, among: RowSet | None, query: Mapping[str, int]
    ) -> tuple[Ids, Vectors | None]:
        graph = self._structure
        graph.expansion_search = max(listed(query["ef_search"], len(graph)), num_wanted)
        found = graph.search(queries, num_wanted, threads=faiss.omp_get_max_threads())
        if len(queries) == 1:  # it returns one query's matches without that dimension
            rows = np.full((1, num_wanted), -1, dtype=np.int64)
            keys = found.keys.reshape(-1)
            rows[0, : len(keys)] = keys
            return rows, None
        rows = found.keys.astype(np.int64)
        rows[np.arange(num_wanted) >= found.counts[:, None]] = -1
        return rows, None

    def _write_structure(self, path: Path) -> None:
        self._structure.save(str(path))

    def _read_structure(self, path: Path, store: VectorStore) -> Any:
        graph = self._learnt(store)
        graph.load(str(path))
        if len(graph) != store.num_rows:
            raise TypeError(f"it has {len(graph)} vectors; expected {store.num_rows}")
        return graph

    def _measured_bytes(self) -> int:
        return int(self._structure.serialized_length)
