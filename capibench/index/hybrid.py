"""Lists, codes and exact vectors, each where it is cheapest: which region, which candidates, which
neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import faiss

from capibench.embedder.embedder import Vectors
from capibench.index.exact_scan import faiss_metric
from capibench.index.faiss_index import coarse_quantizer, filled_up, repeated, set_clustering
from capibench.index.ivf import Ivf
from capibench.index.pq import num_codes
from capibench.index.stored_index import check_at_least_1


@dataclass
class Hybrid(Ivf):
    """Inverted lists (see `Ivf`) of 4-bit product-quantizer codes (see `Pq`), scanned in
    registers, and an exact comparison of the best `rerank` times k candidates (Jégou et al.,
    "Searching in one billion vectors: re-rank with source coding", ICASSP 2011, whose re-ranking
    codes are whole vectors here). The codes are of the vectors themselves, not of their
    difference from the list's centre: one table per query serves all lists. The effort is nprobe.
    """

    query_names: ClassVar[tuple[str, ...]] = ("nprobe", "rerank")
    exact_scores: ClassVar[bool] = False
    # Scanning codes is so cheap that finding the lists soon costs more: on 50,000 embeddings 64,
    # 256 and 894 lists took 166, 201 and 250 µs at a recall of 0.96, and 0.6 to 4.8 s to make.
    lists_per_root: ClassVar[int] = 1

    dims_per_code: int
    rerank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(self, "dims_per_code")

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {**super()._type_params(), "type": "hybrid", "dims_per_code": self.dims_per_code}

    def _dimension(self, dimension: int) -> int:
        return num_codes(dimension, self.dims_per_code) * self.dims_per_code

    def _empty(self, dimension: int, nlist: int) -> Any:
        structure = faiss.IndexIVFPQFastScan(
            coarse_quantizer(self._dimension(dimension), self.metric),
            self._dimension(dimension),
            nlist,
            num_codes(dimension, self.dims_per_code),
            4,
            faiss_metric(self.metric),
        )
        set_clustering(
            structure.pq.cp,
            seed=self.seed,
            num_iterations=self.num_iterations,
            per_centroid=self.num_training_vectors_per_list,
        )
        return structure

    def _training_vectors(self, sample: Vectors, structure: Any) -> Vectors:
        return filled_up(repeated(sample, 16), int(structure.d))

    def _is_mine(self, structure: Any) -> bool:
        return isinstance(structure, faiss.IndexIVFPQFastScan)
