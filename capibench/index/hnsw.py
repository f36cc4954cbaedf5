"""A navigable graph: the fastest single query on vectors that fit in memory, slow to build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import faiss

from capibench.embedder.embedder import Vectors
from capibench.index.exact_scan import faiss_metric
from capibench.index.faiss_index import FaissIndex
from capibench.index.stored_index import as_whole, check_at_least_1
from capibench.index.vector_store import VectorStore

MOST_LINKS = 10_000  # where hnswlib stops, too
LADDER = (8, 16, 32, 64, 128, 256, 512, 1024)


def listed(ef_search: int, num_rows: int) -> int:
    """The length of the candidate list: a library takes memory for all of it, and no more than
    all rows can be candidates."""
    return max(min(ef_search, num_rows), 1)


@dataclass
class Hnsw(FaissIndex):
    """Greedy search over a hierarchy of proximity graphs (Malkov and Yashunin, "Efficient and
    robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs",
    TPAMI 2020, algorithms 1-5). The effort is efSearch, the length of the candidate list; less
    than k counts as k. Built by one thread it is deterministic.

    The graph reads the vectors where they lie in the store, so that only its links cost memory.
    Float16 vectors, and those of an index that was added to since it was built or loaded, it
    cannot read there and holds a float32 copy.

    Candidates are filtered afterwards. FAISS's own filter returns any k allowed rows that it met,
    so that nobody can tell when the candidate list was too short to hold the nearest ones: of
    3,000 vectors, half of them allowed and mostly not those near the queries, it found 0.70 of the
    neighbours at an effort that finds 0.95 without a filter.
    """

    query_names: ClassVar[tuple[str, ...]] = ("ef_search",)
    learns: ClassVar[bool] = False
    exact_scores: ClassVar[bool] = True

    num_links: int
    ef_construction: int
    ef_search: int
    _shared: Vectors | None = field(init=False, repr=False, default=None)  # None: a copy is held
    _storage: Any = field(init=False, repr=False, default=None)  # kept alive for the graph

    def __post_init__(self) -> None:
        super().__post_init__()
        # 1 makes the level distribution, 1 / ln(num_links), infinite.
        as_whole("num_links", self.num_links, least=2, most=MOST_LINKS)
        check_at_least_1(self, "ef_construction")

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "hnsw",
            "num_links": self.num_links,
            "ef_construction": self.ef_construction,
        }

    def _ladder(self, name: str) -> tuple[int, ...]:
        """Powers of two from 8 to 1,024; once built, no further than the first that reaches the
        number of vectors."""
        if self._store is None:
            return LADDER
        num_vectors = self.num_vectors
        return tuple(ef for i, ef in enumerate(LADDER) if i == 0 or LADDER[i - 1] < num_vectors)

    @property
    def takes_filter(self) -> bool:
        return False

    def _parameters(self, query: Mapping[str, int], selector: Any) -> Any:
        effort = listed(query["ef_search"], int(self._structure.ntotal))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)

    def _learnt(self, store: VectorStore) -> Any:
        graph = faiss.IndexHNSWFlat(store.dimension, self.num_links, faiss_metric(self.metric))
        graph.hnsw.efConstruction = self.ef_construction
        return graph

    def _emptied(self, structure: Any, store: VectorStore) -> Any:
        return self._learnt(store)

    def _take_in(self, structure: Any, vectors: Vectors) -> None:
        if structure is self._structure:
            self._own_vectors()
        super()._take_in(structure, vectors)

    def _settled(self) -> None:
        """Let the graph read the store's vectors instead of a copy."""
        shared = self._shared = self.store.in_one_piece
        if shared is None:
            return
        view = faiss.IndexFlat(self.store.dimension, faiss_metric(self.metric))
        codes = view.codes  # set as FAISS itself does when it maps an index file into memory
        codes.is_owned = False
        codes.view_data = codes.c_ptr = faiss.cast_integer_to_uint8_ptr(shared.ctypes.data)
        codes.view_size = codes.c_size = shared.nbytes
        view.ntotal = len(shared)
        self._replace_storage(view)

    def _own_vectors(self) -> None:
        """Give the graph a copy that it may append to."""
        if self._shared is None:
            return
        own = faiss.IndexFlat(self._structure.d, faiss_metric(self.metric))
        own.add(self._shared)
        self._replace_storage(own)
        self._shared = None

    def _replace_storage(self, storage: Any) -> None:
        graph = self._structure
        if graph.own_fields and graph.storage is not None:
            graph.storage.thisown = True  # Python frees it, since the graph will not
        graph.storage, graph.own_fields = storage, False
        self._storage = storage

    def _write_structure(self, path: Path) -> None:
        flags = 0 if self.store.dtype == "float16" else faiss.IO_FLAG_SKIP_STORAGE
        faiss.write_index(self._structure, str(path), flags)

    def _is_mine(self, structure: Any) -> bool:
        return isinstance(structure, faiss.IndexHNSWFlat)

    def _measured_bytes(self) -> int:
        writer = faiss.VectorIOWriter()
        faiss.write_index(self._structure, writer, faiss.IO_FLAG_SKIP_STORAGE)
        links_bytes = int(writer.data.size())
        if self._shared is not None:
            return links_bytes
        return links_bytes + self.store.num_rows * self.store.dimension * 4  # its copy is float32
