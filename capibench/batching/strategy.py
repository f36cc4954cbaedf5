"""The seam of batching: a strategy looks at the queue and decides; the batcher acts.

A strategy is pure: it holds no clock, no lock and no queue, and may be asked at any time. One that
remembers something (an open window) serves one batcher only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class WaitingItem:
    """One queued request, as far as a decision needs it. Times are absolute loop seconds."""

    priority: int
    num_tokens: int  # prompt tokens (or any other size); 0 where the size is unknown
    enqueued_s: float
    max_wait_s: float  # bounds batch formation; infinity: no bound of its own
    deadline_s: float  # absolute; infinity: none


class WaitingItems(Protocol):
    """The queue as a strategy sees it: read-only, in arrival order, answered without a scan."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> WaitingItem: ...

    def __iter__(self) -> Iterator[WaitingItem]: ...

    def first(self, count: int) -> Sequence[int]:
        """Indices of at most `count` items: by priority, then by arrival."""

    @property
    def earliest_bound_s(self) -> float:
        """When the first item has waited its own `max_wait_s` (infinity: none has a bound)."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker: idle when `busy_since_s` is None."""

    busy_since_s: float | None


@dataclass(frozen=True, slots=True)
class QueueView:
    """What a strategy may know: waiting items in arrival order (never empty), now, the workers."""

    items: WaitingItems
    now_s: float
    workers: Sequence[WorkerView]  # at least one is idle
    draining: bool  # nothing more will arrive: waiting for company is pointless

    def idle_worker(self) -> int:
        """Index of the first idle worker."""
        return next(i for i, worker in enumerate(self.workers) if worker.busy_since_s is None)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the items at `indices` (into `QueueView.items`) to `worker`, for this `reason`."""

    indices: Sequence[int]
    worker: int
    reason: str  # "full", "window", "idle_worker", "drain", "max_wait", ...


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Ask again at this absolute time, or earlier when something arrives or a worker frees."""

    time_s: float  # infinity only when not draining


class BatchStrategy(Protocol):
    """Laws, tested for every strategy: valid unique indices; at its own `WaitUntil` time it
    dispatches or names a strictly later one; draining empties the queue; FIFO within a class."""

    @property
    def max_batch_size(self) -> int:
        """Upper bound of a batch."""

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        """Called when at least one item waits and at least one worker is idle."""
