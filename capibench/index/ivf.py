"""Inverted lists: search only the part of the corpus near the query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import faiss

from capibench.index.exact_scan import faiss_metric
from capibench.index.faiss_index import (
    FaissIndex,
    coarse_quantizer,
    powers_of_two,
    resolved_nlist,
    set_clustering,
)
from capibench.index.metric import Metric
from capibench.index.stored_index import check_at_least_1, check_seed
from capibench.index.vector_store import VectorStore

# Of an automatic nlist, in units of the square root of n: FAISS's rule below a million vectors.
LISTS_PER_ROOT = 4


@dataclass
class Ivf(FaissIndex):
    """K-means cuts the corpus into `nlist` lists; a query searches the `nprobe` nearest ones
    (Sivic and Zisserman, "Video Google", ICCV 2003; Jégou et al., "Product Quantization for
    Nearest Neighbor Search", TPAMI 2011, §IV). Vectors are stored whole, a second time, in the
    order of the lists. The effort is nprobe; at nprobe = nlist the search is exact.
    """

    query_names: ClassVar[tuple[str, ...]] = ("nprobe",)
    learns: ClassVar[bool] = True
    exact_scores: ClassVar[bool] = True
    lists_per_root: ClassVar[int] = LISTS_PER_ROOT

    nlist: int | None
    nprobe: int
    num_iterations: int
    num_training_vectors_per_list: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(self, "num_iterations", "num_training_vectors_per_list")
        if self.nlist is not None:
            check_at_least_1(self, "nlist")
        check_seed(self)

    def describe(self) -> dict[str, str | int | float]:
        described = super().describe()
        if self._structure is not None:
            nlist = int(self._structure.nlist)
            described |= {"nlist": nlist, "nprobe": min(self._query["nprobe"], nlist)}
        return described

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "ivf",
            "nlist": self.nlist,
            "num_iterations": self.num_iterations,
            "num_training_vectors_per_list": self.num_training_vectors_per_list,
            "seed": self.seed,
        }

    def _ladder(self, name: str) -> tuple[int, ...]:
        """Of nprobe: powers of two below nlist, then nlist itself. Before an automatic nlist is
        known, that is before the index is built, up to 1,024."""
        if name != "nprobe":
            return super()._ladder(name)
        nlist = 1024 if self.nlist is None else self.nlist
        return powers_of_two(nlist if self._structure is None else int(self._structure.nlist))

    def _parameters(self, query: Mapping[str, int], selector: Any) -> Any:
        # FAISS takes memory for as many lists as it is told, whether there are so many or not.
        nprobe = min(query["nprobe"], int(self._structure.nlist))
        return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)

    def _learnt(self, store: VectorStore) -> Any:
        nlist = resolved_nlist(self.nlist, store.num_live, self.lists_per_root)
        structure = self._empty(store.dimension, nlist)
        set_clustering(
            structure.cp,
            seed=self.seed,
            num_iterations=self.num_iterations,
            per_centroid=self.num_training_vectors_per_list,
        )
        structure.cp.spherical = self.metric is not Metric.L2  # centres compared by inner product
        structure.train(
            self._training_vectors(
                store.sample(nlist * self.num_training_vectors_per_list, self.seed), structure
            )
        )
        return structure

    def _empty(self, dimension: int, nlist: int) -> Any:
        """An untrained structure."""
        return faiss.IndexIVFFlat(
            coarse_quantizer(dimension, self.metric), dimension, nlist, faiss_metric(self.metric)
        )

    def _training_vectors(self, sample: Any, structure: Any) -> Any:
        """What the structure is trained on; here the sample as it is."""
        return sample

    def _is_mine(self, structure: Any) -> bool:
        return isinstance(structure, faiss.IndexIVFFlat)
