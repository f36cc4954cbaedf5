"""Inverted lists: search only the part of the corpus near the query."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import faiss

from capibench.embedder.embedder import Vectors
from capibench.index.faiss_index import FaissIndex, check_at_least_1

# FAISS's own rule for k-means that is not starved of points.
_MIN_VECTORS_PER_LIST = 39


@dataclass
class Ivf(FaissIndex):
    """K-means cuts the corpus into `nlist` lists; a query searches the `nprobe` nearest ones
    (Sivic and Zisserman, "Video Google", ICCV 2003; Jégou et al., "Product Quantization for
    Nearest Neighbor Search", TPAMI 2011, §IV). Vectors are stored whole. The effort is nprobe;
    at nprobe = nlist the search is exact.
    """

    nlist: int | None
    nprobe: int
    num_iterations: int
    num_training_vectors_per_list: int
    seed: int
    _effort: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(self, "nprobe", "num_iterations", "num_training_vectors_per_list")
        if self.nlist is not None:
            check_at_least_1(self, "nlist")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}; expected at least 0")
        self._effort = self.nprobe

    def build_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "ivf",
            "faiss": faiss.__version__,
            "nlist": self.nlist,
            "num_iterations": self.num_iterations,
            "num_training_vectors_per_list": self.num_training_vectors_per_list,
            "seed": self.seed,
        }

    @property
    def effort(self) -> int:
        """nprobe, as set."""
        return self._effort

    def effort_ladder(self) -> tuple[int, ...]:
        """Powers of two below nlist, then nlist itself. Before an automatic nlist is known, that
        is before the index is built, up to 1,024."""
        nlist = 1024 if self.nlist is None else self.nlist
        if self._index is not None:
            nlist = int(self._index.nlist)
        return (*(2**i for i in range((nlist - 1).bit_length())), nlist)

    def set_effort(self, effort: int) -> None:
        """Set nprobe; FAISS takes more than nlist as nlist."""
        if effort < 1:
            raise ValueError(f"effort: got {effort}; expected at least 1")
        self._effort = effort
        if self._index is not None:
            self._index.nprobe = effort

    def describe(self) -> dict[str, str | int | float]:
        described = super().describe() | {"nprobe": self._effort}
        if self._index is not None:
            nlist = int(self._index.nlist)
            described |= {"nlist": nlist, "nprobe": min(self._effort, nlist)}
        return described

    def _make(self, vectors: Vectors) -> Any:
        num_vectors, dimension = vectors.shape
        nlist = auto_nlist(num_vectors) if self.nlist is None else self.nlist
        if nlist > num_vectors:
            raise ValueError(
                f"nlist: got {nlist}; expected at most the number of vectors, {num_vectors}"
            )
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(dimension), dimension, nlist, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = self.seed
        index.cp.niter = self.num_iterations
        index.cp.max_points_per_centroid = self.num_training_vectors_per_list
        index.cp.min_points_per_centroid = 1  # it only warns, on standard error
        index.cp.spherical = True  # centroids of unit vectors, compared by inner product
        index.train(vectors)
        return index

    def _adopt(self, index: Any) -> None:
        if not isinstance(index, faiss.IndexIVFFlat):
            raise TypeError(f"it is {type(index).__name__}")
        index.nprobe = self._effort


def auto_nlist(num_vectors: int) -> int:
    """About 4·√n lists, but at least 39 vectors for each where that leaves any choice."""
    return max(1, min(round(4 * math.sqrt(num_vectors)), num_vectors // _MIN_VECTORS_PER_LIST))
