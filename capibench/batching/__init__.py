"""Batching: strategies that decide, and the batcher that acts.

The public names are imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capibench.batching.batch import BatchRecord
    from capibench.batching.dynamic_batcher import DynamicBatcher
    from capibench.batching.outcome import BatchOutcome
    from capibench.batching.request import RequestState
    from capibench.batching.stats import BatcherStats, WaitQuantiles
    from capibench.batching.strategy_choice import BatchStrategy
    from capibench.errors import WorkerBroken
    from capibench.records import RequestPriority

__all__ = [
    "BatchOutcome",
    "BatchRecord",
    "BatchStrategy",
    "BatcherStats",
    "DynamicBatcher",
    "RequestPriority",
    "RequestState",
    "WaitQuantiles",
    "WorkerBroken",
]

_MODULES = {
    "BatchOutcome": "capibench.batching.outcome",
    "BatchRecord": "capibench.batching.batch",
    "BatchStrategy": "capibench.batching.strategy_choice",
    "BatcherStats": "capibench.batching.stats",
    "DynamicBatcher": "capibench.batching.dynamic_batcher",
    "RequestPriority": "capibench.records",
    "RequestState": "capibench.batching.request",
    "WaitQuantiles": "capibench.batching.stats",
    "WorkerBroken": "capibench.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
