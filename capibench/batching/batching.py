"""What `batching=...` chooses: when batches leave, who leaves together, who may wait."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.batching.composition import Composition
from capibench.batching.strategy import Strategy


@dataclass
class Batching:
    """What the runner makes a `Batcher` of: the strategy decides when a batch leaves, the
    composition which items are in it; `max_queue_size` bounds how many wait."""

    strategy: Strategy
    composition: Composition
    max_queue_size: int

    def __post_init__(self) -> None:
        if self.max_queue_size < 1:
            raise ValueError(f"max_queue_size: got {self.max_queue_size}; expected at least 1")
