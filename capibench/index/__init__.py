"""Vector search.

The public names are imported when they are first asked for: importing this package loads neither
FAISS nor anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capibench.index.optimizer.names import IndexType, OptimizationStrategy, OptimizationType
    from capibench.index.optimizer.optimizer import RAGIndexOptimizer
    from capibench.index.optimizer.results import (
        IndexComparison,
        IndexInfo,
        OptimizationResult,
        SearchResult,
    )

__all__ = [
    "IndexComparison",
    "IndexInfo",
    "IndexType",
    "OptimizationResult",
    "OptimizationStrategy",
    "OptimizationType",
    "RAGIndexOptimizer",
    "SearchResult",
]

_MODULES = {
    "IndexComparison": "optimizer.results",
    "IndexInfo": "optimizer.results",
    "IndexType": "optimizer.names",
    "OptimizationResult": "optimizer.results",
    "OptimizationStrategy": "optimizer.names",
    "OptimizationType": "optimizer.names",
    "RAGIndexOptimizer": "optimizer.optimizer",
    "SearchResult": "optimizer.results",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
