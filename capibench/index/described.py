"""Further FAISS structures by FAISS's own short description of them, such as "IVF,SQ8"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import faiss

from capibench.index.exact_scan import faiss_metric
from capibench.index.faiss_index import FaissIndex, powers_of_two, resolved_nlist, set_clustering
from capibench.index.hnsw import LADDER, listed
from capibench.index.ivf import LISTS_PER_ROOT
from capibench.index.metric import Metric
from capibench.index.stored_index import check_at_least_1, check_seed
from capibench.index.vector_store import VectorStore

# FAISS parses much more than it builds rightly ("SQ0" gives a broken index, "RFlat" refines
# nothing, "PQ48" trains for minutes): what stands here was tried.
_PATTERN = re.compile(
    r"(?:(?P<lists>IVF)(?P<nlist>[1-9]\d*)?,|(?P<graph>HNSW)(?P<links>[2-9]|[1-9]\d+),)?"
    r"(?P<codes>SQ4|SQ6|SQ8|SQfp16|SQbf16|RaBitQ|RaBitQfs)"
)
# Scalar quantizers learn each dimension's range, RaBitQ a centre: a sample of this size suffices.
_NUM_TRAINING_VECTORS = 65_536
_OPTIONAL = ("nprobe", "ef_search")


@dataclass
class Described(FaissIndex):
    """Scalar quantization (SQ...: 4 to 16 bits a dimension) or RaBitQ (Gao and Long, "RaBitQ:
    Quantizing High-Dimensional Vectors with a Theoretical Error Bound", SIGMOD 2024: one bit a
    dimension after a random rotation, nothing to train), scanned whole, in inverted lists (IVF,
    as many as `Ivf` would take, or IVF64) or along a graph (HNSW32). The best `rerank` times k
    candidates are compared exactly.

    The effort is nprobe or ef_search where there are lists or a graph, else `rerank`.
    """

    query_names: ClassVar[tuple[str, ...]] = ("rerank",)
    learns: ClassVar[bool] = True
    exact_scores: ClassVar[bool] = False

    description: str
    nprobe: int | None
    ef_search: int | None
    rerank: int
    seed: int

    def __post_init__(self) -> None:
        parts = _PATTERN.fullmatch(self.description)
        if parts is None or (parts["graph"] and parts["codes"].startswith("RaBitQ")):
            raise ValueError(
                f"description: got {self.description!r}; expected SQ4, SQ6, SQ8, SQfp16, SQbf16, "
                "RaBitQ or RaBitQfs, behind IVF, or IVF and a number (IVF64,SQ8), or for SQ HNSW "
                "and a number (HNSW32,SQ8)"
            )
        used = "nprobe" if parts["lists"] else "ef_search" if parts["graph"] else None
        for name in _OPTIONAL:
            if (getattr(self, name) is not None) != (name == used):
                raise ValueError(
                    f"{name}: got {getattr(self, name)}; expected "
                    f"{'a number' if name == used else 'null'}, by description={self.description}"
                )
        super().__post_init__()
        if used is not None:
            check_at_least_1(self, used)
            self._query = {used: getattr(self, used), **self._query}
        check_seed(self)

    @property
    def takes_filter(self) -> bool:
        return self.ef_search is None and self.description != "RaBitQfs"  # graphs: see `Hnsw`

    def query_ladders(self) -> dict[str, tuple[int, ...]]:
        return {name: self._ladder(name) for name in self._query}

    def _type_params(self) -> dict[str, int | float | str | None]:
        return {"type": "described", "description": self.description, "seed": self.seed}

    @cached_property
    def _parts(self) -> Mapping[str, str | None]:
        parts = _PATTERN.fullmatch(self.description)
        assert parts is not None  # __post_init__ has refused it
        return parts.groupdict()

    def _ladder(self, name: str) -> tuple[int, ...]:
        if name == "ef_search":
            return LADDER
        if name == "nprobe":
            return powers_of_two(1024 if self._structure is None else int(self._structure.nlist))
        return super()._ladder(name)

    def _parameters(self, query: Mapping[str, int], selector: Any) -> Any:
        if "nprobe" in query:
            nprobe = min(query["nprobe"], int(self._structure.nlist))
            return faiss.SearchParametersIVF(sel=selector, nprobe=nprobe)
        if "ef_search" in query:
            effort = listed(query["ef_search"], int(self._structure.ntotal))
            return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
        return super()._parameters(query, selector)

    def _learnt(self, store: VectorStore) -> Any:
        description = self.description
        if self._parts["lists"]:
            given = self._parts["nlist"]
            nlist = resolved_nlist(
                None if given is None else int(given), store.num_live, LISTS_PER_ROOT
            )
            description = f"IVF{nlist},{self._parts['codes']}"
        structure = faiss.index_factory(store.dimension, description, faiss_metric(self.metric))
        if self._parts["lists"]:
            set_clustering(structure.cp, seed=self.seed, num_iterations=10, per_centroid=256)
            structure.cp.spherical = self.metric is not Metric.L2
            if self.metric is Metric.IP and str(self._parts["codes"]).startswith("SQ"):
                # Centres of length 1 leave of much shorter vectors a difference that hides them.
                structure.by_residual = False
        structure.train(store.sample(_NUM_TRAINING_VECTORS, self.seed))
        return structure

    def _is_mine(self, structure: Any) -> bool:
        kinds = {
            "SQ": (faiss.IndexScalarQuantizer, faiss.IndexIVFScalarQuantizer, faiss.IndexHNSWSQ),
            "RaBitQ": (
                faiss.IndexRaBitQ,
                faiss.IndexRaBitQFastScan,
                faiss.IndexIVFRaBitQ,
                faiss.IndexIVFRaBitQFastScan,
            ),
        }
        codes = str(self._parts["codes"])
        return isinstance(structure, kinds["SQ" if codes.startswith("SQ") else "RaBitQ"])
