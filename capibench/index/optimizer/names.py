"""The names a user picks from."""

from __future__ import annotations

from enum import StrEnum


class IndexType(StrEnum):
    """Kinds of structure; each is a choice of `conf/index` by the same name."""

    FLAT = "flat"
    IVF = "ivf"
    HNSW = "hnsw"
    PQ = "pq"
    HYBRID = "hybrid"


class OptimizationStrategy(StrEnum):
    """What an index is chosen for; each is a choice of `conf/index_tuning` by the same name."""

    SPEED = "speed"
    ACCURACY = "accuracy"
    MEMORY = "memory"
    BALANCED = "balanced"
    ADAPTIVE = "adaptive"


class OptimizationType(StrEnum):
    """What `optimize_index` does."""

    TUNE = "tune"  # search anew for what the index's strategy wants, from the vectors as they are
    REBALANCE = "rebalance"  # the same structure, learnt anew from the vectors as they are
    COMPRESS = "compress"  # the smallest structure that keeps the strategy's recall
