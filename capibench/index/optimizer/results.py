"""What an optimizer answers. Every figure is counted or measured; None where nobody measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from capibench.measure.stats import Estimate


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The neighbours of one query. A distance is smaller the nearer: 1 minus the cosine, minus the
    inner product, or the squared Euclidean distance."""

    query_id: str  # UUID, version 4
    results: list[tuple[int, float]]  # (id, distance), nearest first
    search_time_ms: float  # of a query in a batch: the batch's time over its queries
    index_used: str
    metadata: Mapping[str, Any]  # k, index_type, index_version, num_vectors, batch_size, documents


@dataclass(frozen=True, slots=True)
class Figures:
    """One index as measured on queries that are not in it."""

    recall: Estimate  # mean recall@k against exact search
    latency_ms: Estimate  # per query, in the optimizer's batch size
    memory_bytes: int  # that answering touches, beside vectors that only re-ranking reads
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OptimizationResult:
    """What `optimize_index` did, before and after on the same queries, timed side by side."""

    index_name: str
    optimization_type: str
    changed: bool  # False: the index is as it was, for the reasons given
    before: Figures
    after: Figures  # of the index as it is now
    tried: Figures  # of what was tried; the same as `after` where that was taken
    reasons: tuple[str, ...]
    seconds: float
    index_version: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """One kept index."""

    name: str
    type: str  # the choice of conf/index that it is
    factory_string: str  # in FAISS's notation, as far as that has one
    parameters: Mapping[str, Any]
    strategy: str
    reasons: tuple[str, ...]  # why this type and these parameters
    metric: str
    dimension: int
    num_vectors: int
    recall: Estimate | None  # last measured; None: too few vectors to hold some out as queries
    recall_k: int | None
    memory_bytes: int
    disk_bytes: int
    build_seconds: float | None  # of the structure: training and adding
    tuning_seconds: float | None
    num_changed: int  # vectors added and removed since the recall was measured
    version: int  # grows with every saved change
    created_at: str  # ISO 8601, UTC
    updated_at: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Best:
    """The best of one figure, and everything that cannot be told from it."""

    name: str
    ties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexComparison:
    """Several indexes of the same vectors on the same queries."""

    figures: Mapping[str, Figures]  # by index name
    pareto_front: tuple[str, ...]  # over recall, latency and memory
    best: Mapping[str, Best]  # of recall, latency, memory
    k: int
    num_queries: int
    num_left_out: int  # queries that are themselves in the index
    batch_size: int
    num_threads: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
