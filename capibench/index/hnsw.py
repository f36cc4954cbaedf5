"""A navigable graph: the fastest single query on vectors that fit in memory, slow to build."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import faiss

from capibench.embedder.embedder import Vectors
from capibench.index.faiss_index import FaissIndex, check_at_least_1

_LADDER = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass
class Hnsw(FaissIndex):
    """Greedy search over a hierarchy of proximity graphs (Malkov and Yashunin, "Efficient and
    robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs",
    TPAMI 2020, algorithms 1-5). The effort is efSearch, the length of the candidate list.
    Built by one thread it is deterministic; vectors cannot be removed.
    """

    num_links: int
    ef_construction: int
    ef_search: int
    _effort: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_links < 2:  # 1 makes the level distribution, 1 / ln(num_links), infinite
            raise ValueError(f"num_links: got {self.num_links}; expected at least 2")
        check_at_least_1(self, "ef_construction", "ef_search")
        self._effort = self.ef_search

    def build_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "hnsw",
            "faiss": faiss.__version__,
            "num_links": self.num_links,
            "ef_construction": self.ef_construction,
        }

    @property
    def effort(self) -> int:
        """efSearch, as set."""
        return self._effort

    def effort_ladder(self) -> tuple[int, ...]:
        """Powers of two from 8 to 1,024; once built, no further than the first that reaches the
        number of vectors."""
        if self._index is None:
            return _LADDER
        num_vectors = int(self._index.ntotal)
        return tuple(ef for i, ef in enumerate(_LADDER) if i == 0 or _LADDER[i - 1] < num_vectors)

    def set_effort(self, effort: int) -> None:
        """Set efSearch; FAISS takes less than k as k."""
        if effort < 1:
            raise ValueError(f"effort: got {effort}; expected at least 1")
        self._effort = effort
        if self._index is not None:
            self._adopt(self._index)

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"ef_search": self._effort}

    def _make(self, vectors: Vectors) -> Any:
        graph = faiss.IndexHNSWFlat(vectors.shape[1], self.num_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = self.ef_construction
        return faiss.IndexIDMap2(graph)  # the graph itself knows only row numbers

    def _adopt(self, index: Any) -> None:
        if not isinstance(index, faiss.IndexIDMap2):
            raise TypeError(f"it is {type(index).__name__}")
        graph = faiss.downcast_index(index.index)
        if not isinstance(graph, faiss.IndexHNSWFlat):
            raise TypeError(f"it holds {type(graph).__name__}")
        graph.hnsw.efSearch = self._effort
