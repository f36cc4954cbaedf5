"""What `batching=...` chooses: how batches form, and how many requests may wait for one."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.batching.strategy import BatchStrategy


@dataclass
class Batching:
    """A strategy and the bound of its queue; the runner makes a `DynamicBatcher` of both."""

    strategy: BatchStrategy
    max_queue_size: int

    def __post_init__(self) -> None:
        if self.max_queue_size < 1:
            raise ValueError(f"max_queue_size: got {self.max_queue_size}; expected at least 1")
