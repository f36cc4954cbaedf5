"""The seam of batching: a strategy looks at the queue and decides; the batcher acts.

A strategy is pure: it holds no clock, no lock and no queue, and may be asked at any time. One that
remembers something (an open window) serves one batcher only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from capibench.batching.composition import AS_THEY_CAME, Composition

_FIRST_REST_S = 0.1  # of a worker after its first failure, and twice that after each further one
_LONGEST_REST_S = 30.0


class WaitingItem(NamedTuple):
    """One queued request, as far as a decision needs it. Times are absolute loop seconds.

    A tuple, because one is made for every request and a frozen dataclass takes three times as long.
    """

    priority: int
    num_tokens: int  # prompt tokens (or any other size); 0 where the size is unknown
    enqueued_s: float
    max_wait_s: float  # bounds batch formation; infinity: no bound of its own
    deadline_s: float  # absolute: when the answer is due; infinity: never


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

    @property
    def earliest_deadline_s(self) -> float:
        """The first deadline of a waiting item (infinity: none has one)."""


class WorkerView(NamedTuple):
    """One worker: idle when `num_running` is 0. A tuple, as `WaitingItem` is."""

    num_running: int  # items dispatched to it that are not done
    busy_since_s: float | None  # since when it has not been idle; None: it is
    num_failures: int = 0  # batches in a row of which it answered nobody; one answer: 0
    failed_s: float = float("-inf")  # when the last of these ended

    @property
    def rests_until_s(self) -> float:
        """Before this time a worker that failed is not tried again beside sound ones."""
        if not self.num_failures:
            return float("-inf")
        doublings = min(self.num_failures - 1, 30)
        return self.failed_s + min(_FIRST_REST_S * 2.0**doublings, _LONGEST_REST_S)


@dataclass(frozen=True, slots=True)
class QueueView:
    """What a strategy may know: waiting items in arrival order (never empty), now, the workers."""

    items: WaitingItems
    now_s: float
    workers: Sequence[WorkerView]  # at least one has room
    draining: bool  # nothing more will arrive: waiting for company is pointless
    composition: Composition = AS_THEY_CAME

    def batch(self, limit: int) -> Sequence[int]:
        """Indices of the next batch of at most `limit` items, the head of the line among them, in
        order of priority, then arrival."""
        line = self.items.first(self.composition.reach(limit))
        return self.composition.choose(self.items, line, limit)

    def is_full(self, batch: Sequence[int], limit: int) -> bool:
        """Whether no further item would fit into `batch`, which `batch(limit)` returned."""
        return len(batch) == limit or len(batch) < len(self.items)

    def probe_or_rest(self, room: int = 1) -> Dispatch | WaitUntil | None:
        """What to do about workers that fail, before anything else. None: go on.

        One that answers its batches with errors is idle again at once, and would draw all that
        comes (a black hole). So while a sound worker is there, if only a busy one, a failing one
        rests: 0.1 s after its first failure, twice as long after each further one, at most 30 s.
        Then, as soon as no sound worker is idle, the head of the line goes to it alone, and one
        answer makes it sound again. Where no worker is sound none rests.

        Args:
            room: items that may run on a worker at once.
        """
        workers = self.workers
        if len(workers) == 1:
            return None
        sound = [worker for worker in workers if not worker.num_failures]
        if not sound or len(sound) == len(workers) or not all(one.num_running for one in sound):
            return None
        idle = [i for i, one in enumerate(workers) if one.num_failures and not one.num_running]
        worker = min(idle, key=lambda i: workers[i].rests_until_s, default=None)
        if worker is not None and workers[worker].rests_until_s <= self.now_s:
            return Dispatch(self.batch(1), worker, "probe")
        if any(one.num_running < room for one in sound):
            return None
        if worker is None:  # there is room only beside a probe, whose end is told
            return WaitUntil(self.now_s + _LONGEST_REST_S)
        return WaitUntil(workers[worker].rests_until_s)

    def idle_worker(self) -> int:
        """The idle worker to use where `probe_or_rest` says to go on: the first sound one. Where
        none is sound, the one that has failed least, of such the one whose failure is oldest."""
        workers = self.workers
        if len(workers) == 1:
            return 0
        idle = [i for i, worker in enumerate(workers) if worker.num_running == 0]
        return min(idle, key=lambda i: (workers[i].num_failures, workers[i].failed_s))


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


@dataclass(frozen=True, slots=True)
class Shed:
    """Give up the items at `indices`: they end at once as rejected, for this `reason`."""

    indices: Sequence[int]
    reason: str  # "deadline_unreachable", ...


class Strategy(Protocol):
    """Laws, tested for every strategy: valid unique indices; at its own `WaitUntil` time it
    dispatches or names a strictly later one; it does not wait past an item's own bound while a
    worker has room that answers its batches; draining empties the queue; FIFO within a class."""

    @property
    def max_batch_size(self) -> int:
        """Upper bound of a batch; where batches can be joined, of the items that run at once."""

    @property
    def joins_running(self) -> bool:
        """Whether it adds items to a worker that runs others (iteration-level batching); then a
        worker has room until `max_batch_size` items run on it. Otherwise it must be idle."""

    def decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        """Called when at least one item waits and at least one worker has room."""


@dataclass(frozen=True, slots=True)
class Served:
    """A batch that ran without an error: what it was, where, and how long the worker took for it.
    The time in the queue is no part of it."""

    worker: int
    num_tokens: Sequence[int]  # of its items, as in `WaitingItem`
    service_s: float


@runtime_checkable
class LearnsService(Protocol):
    """A strategy that wants to be told how long batches took."""

    def observe(self, served: Served) -> None:
        """Called once per batch that ended well, before the next decision."""
