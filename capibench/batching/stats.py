"""What a batcher counted: not how good it was (the rows say that), but what it was doing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capibench.batching.strategy import WorkerView


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """Counts since the start. Every request ends in exactly one of the first five."""

    num_answered: int
    num_failed: int  # its batch raised, or the batcher stopped before it was served
    num_rejected: int  # the queue was full
    num_timed_out: int  # its deadline passed while it waited
    num_cancelled: int  # its caller gave up, waiting or running
    num_waiting: int  # not ended yet: in the queue
    num_running: int  # in a running batch, whether or not its caller still waits
    num_batches: int
    mean_batch_size: float | None
    reasons: Mapping[str, int]  # dispatch reason → batches
    busy_s: Sequence[float]  # per worker, a running batch included


class Tally:
    """The running counts behind `BatcherStats`."""

    def __init__(self, num_workers: int) -> None:
        self.ended: Counter[str] = Counter()  # "answered", "failed", ... → requests
        self._reasons: Counter[str] = Counter()
        self._busy_s = [0.0] * num_workers
        self._num_batches = 0
        self._num_dispatched = 0
        self._num_running = 0

    def dispatched(self, size: int, reason: str) -> int:
        """Count a batch that leaves; returns its id."""
        self._num_batches += 1
        self._num_dispatched += size
        self._num_running += size
        self._reasons[reason] += 1
        return self._num_batches - 1

    def served(self, size: int, worker: int, service_s: float) -> None:
        """Count a batch that is done."""
        self._num_running -= size
        self._busy_s[worker] += service_s

    def snapshot(
        self, num_waiting: int, workers: Sequence[WorkerView], now_s: float
    ) -> BatcherStats:
        """The counts as of `now_s`."""
        since_s = [now_s if w.busy_since_s is None else w.busy_since_s for w in workers]
        return BatcherStats(
            num_answered=self.ended["answered"],
            num_failed=self.ended["failed"],
            num_rejected=self.ended["rejected"],
            num_timed_out=self.ended["timed_out"],
            num_cancelled=self.ended["cancelled"],
            num_waiting=num_waiting,
            num_running=self._num_running,
            num_batches=self._num_batches,
            mean_batch_size=(
                self._num_dispatched / self._num_batches if self._num_batches else None
            ),
            reasons=dict(self._reasons),
            busy_s=tuple(
                done_s + (now_s - begin_s)
                for done_s, begin_s in zip(self._busy_s, since_s, strict=True)
            ),
        )
