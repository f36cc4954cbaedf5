"""A kept index in words and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capibench.index.optimizer.kept import Kept
from capibench.index.optimizer.results import IndexInfo
from capibench.index.tuner.laboratory import memory_bytes


def info_of(kept: Kept) -> IndexInfo:
    """Everything that is known of it."""
    index, known = kept.index, kept.provenance
    cost, tuned = index.build_cost, known.tuned or {}
    parameters = index.describe()
    return IndexInfo(
        name=known.name,
        type=known.family,
        factory_string=factory_string(parameters),
        parameters=parameters,
        strategy=known.strategy,
        reasons=tuple(tuned.get("reasons", ())),
        metric=index.metric.value,
        dimension=index.store.dimension,
        num_vectors=index.num_vectors,
        recall=known.recall,
        recall_k=known.recall_k,
        memory_bytes=memory_bytes(index),
        disk_bytes=kept.disk_bytes,
        build_seconds=None if cost is None else cost.train_s + cost.add_s,
        tuning_seconds=tuned.get("seconds"),
        num_changed=known.num_changed,
        version=known.version,
        created_at=known.created_at,
        updated_at=known.updated_at,
    )


def factory_string(parameters: Mapping[str, Any]) -> str:
    """FAISS's short description of a structure, from what an index says of itself. What re-ranks,
    does so over the stored vectors, for which that notation has no word."""
    kind, d = parameters["type"], parameters["dimension"]
    match kind:
        case "flat":
            return "Flat"
        case "ivf":
            return f"IVF{parameters['nlist']},Flat"
        case "hnsw":
            return f"HNSW{parameters['num_links']},Flat"
        case "pq":
            codes = -(-d // parameters["dims_per_code"])
            return f"PQ{codes}x4fs" if parameters["code_bits"] == 4 else f"PQ{codes}x8np"
        case "hybrid":
            codes = -(-d // parameters["dims_per_code"])
            return f"IVF{parameters['nlist']},PQ{codes}x4fs"
        case "described":
            return str(parameters["description"])
        case _:
            return str(kind)
