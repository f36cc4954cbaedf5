"""Fill every free slot at once: batching by iteration instead of by request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


@dataclass
class Continuous:
    """Waiting items join the sound worker with the most free slots, also while it runs others.

    The engine merges them at its next iteration and lets each item go when it is done, so a short
    answer neither waits for a long one of its batch nor keeps a slot that it no longer needs
    (Orca's iteration-level scheduling; Yu et al., OSDI 2022, section 3). It needs an engine that
    takes concurrent calls.
    """

    max_batch_size: int

    joins_running: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        aside = view.probe_or_rest(self.max_batch_size)
        if aside is not None:
            return aside
        workers = view.workers
        worker = min(
            (i for i, one in enumerate(workers) if one.num_running < self.max_batch_size),
            key=lambda i: (workers[i].num_failures, workers[i].num_running),
        )
        running = view.workers[worker].num_running
        batch = view.batch(self.max_batch_size - running)
        return Dispatch(batch, worker, "join" if running else "idle_worker")
