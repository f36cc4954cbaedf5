"""Never wait: the reference that every cleverer strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


@dataclass
class Greedy:
    """Whatever waits leaves as soon as a worker is idle, at most `max_batch_size` at once.

    Batches grow by themselves under load, because requests gather while the workers are busy; at
    light load nobody waits for company. With `max_batch_size` 1 it is the baseline, no batching.
    """

    max_batch_size: int

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        batch = view.batch(self.max_batch_size)
        reason = "full" if view.is_full(batch, self.max_batch_size) else "idle_worker"
        return view.probe_or_rest() or Dispatch(batch, view.idle_worker(), reason)
