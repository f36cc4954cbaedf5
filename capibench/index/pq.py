"""Short codes instead of vectors: scanning them all reads a sixteenth of the memory or less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import faiss

from capibench.index.exact_scan import faiss_metric
from capibench.index.faiss_index import FaissIndex, filled_up, repeated, set_clustering
from capibench.index.stored_index import check_at_least_1, check_seed
from capibench.index.vector_store import VectorStore


@dataclass
class Pq(FaissIndex):
    """Cuts a vector into pieces and keeps the number of each piece's nearest codebook entry
    (Jégou et al., "Product Quantization for Nearest Neighbor Search", TPAMI 2011, §II). All codes
    are scanned, and the best `rerank` times k candidates are compared exactly. Codes of 4 bits
    are scanned with the table in registers (André et al., "Cache locality is not enough", VLDB
    2015; FAISS's fast scan), codes of 8 bits by table look-ups.

    Any dimension: zeros fill the last piece up. (A rotation, OPQ, would spread the dimensions as
    well, but costs more training than it returns.) Any number of vectors: where there are fewer
    than a codebook has entries, each vector becomes an entry. The effort is `rerank`. The
    structure takes no filter; candidates are filtered afterwards.
    """

    query_names: ClassVar[tuple[str, ...]] = ("rerank",)
    learns: ClassVar[bool] = True
    exact_scores: ClassVar[bool] = False

    code_bits: Literal[4, 8]
    dims_per_code: int
    rerank: int
    num_iterations: int
    num_training_vectors_per_centroid: int
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(
            self, "dims_per_code", "num_iterations", "num_training_vectors_per_centroid"
        )
        check_seed(self)

    @property
    def takes_filter(self) -> bool:
        return False

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {
            "type": "pq",
            "code_bits": self.code_bits,
            "dims_per_code": self.dims_per_code,
            "num_iterations": self.num_iterations,
            "num_training_vectors_per_centroid": self.num_training_vectors_per_centroid,
            "seed": self.seed,
        }

    def _dimension(self, dimension: int) -> int:
        return num_codes(dimension, self.dims_per_code) * self.dims_per_code

    def _learnt(self, store: VectorStore) -> Any:
        dimension = self._dimension(store.dimension)
        codes = num_codes(store.dimension, self.dims_per_code)
        metric = faiss_metric(self.metric)
        if self.code_bits == 4:
            structure = faiss.IndexPQFastScan(dimension, codes, 4, metric)
        else:
            structure = faiss.IndexPQ(dimension, codes, 8, metric)
        set_clustering(
            structure.pq.cp,
            seed=self.seed,
            num_iterations=self.num_iterations,
            per_centroid=self.num_training_vectors_per_centroid,
        )
        num_entries = 2**self.code_bits
        sample = store.sample(num_entries * self.num_training_vectors_per_centroid, self.seed)
        structure.train(filled_up(repeated(sample, num_entries), dimension))
        return structure

    def _is_mine(self, structure: Any) -> bool:
        return isinstance(
            structure, faiss.IndexPQFastScan if self.code_bits == 4 else faiss.IndexPQ
        )


def num_codes(dimension: int, dims_per_code: int) -> int:
    """Pieces that a vector is cut into."""
    return -(-dimension // dims_per_code)
