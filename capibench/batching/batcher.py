"""The machinery of batching, written once: queue, workers, deadlines, cancellation.

A strategy decides, this acts. It sleeps until something can change a decision (an arrival, a free
worker, the time a strategy named, the earliest deadline) and asks nobody but the running loop for
the time, so that the same object serves real requests and runs under virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from capibench.batching.laws import broken_law
from capibench.batching.stats import BatcherStats, Tally
from capibench.batching.strategy import (
    BatchStrategy,
    Dispatch,
    QueueView,
    WaitingItem,
    WaitUntil,
    WorkerView,
)
from capibench.batching.waiting import WaitingQueue
from capibench.errors import DeadlinePassed, QueueFull, RequestFailed
from capibench.records import RequestPriority

T = TypeVar("T")
R = TypeVar("R")

_INFINITY = float("inf")
_IDLE = WorkerView(busy_since_s=None)


@dataclass(frozen=True, slots=True)
class Answered(Generic[R]):
    """One request's result and how it came about. Times are absolute loop seconds."""

    value: R
    batch_id: int
    batch_size: int
    reason: str  # why the batch left when it did
    enqueued_s: float
    dispatched_s: float
    done_s: float


@dataclass(slots=True)
class _Pending(Generic[T, R]):
    content: T
    enqueued_s: float
    future: asyncio.Future[Answered[R]]


class DynamicBatcher(Generic[T, R]):
    """Gathers single requests into batches for `process_batch`, as `strategy` decides.

    Args:
        process_batch: async; takes contents (in order of priority, then arrival) and the worker's
            index, and returns one result per content in the same order.
        strategy: decides; it belongs to this batcher alone, because it may remember things.
        num_workers: how many batches run at the same time.
        max_queue_size: waiting requests; one more is refused with `QueueFull`.
    """

    def __init__(
        self,
        process_batch: Callable[[Sequence[T], int], Awaitable[Sequence[R]]],
        strategy: BatchStrategy,
        num_workers: int,
        max_queue_size: int,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers: got {num_workers}; expected at least 1")
        if max_queue_size < 1:
            raise ValueError(f"max_queue_size: got {max_queue_size}; expected at least 1")
        self._process_batch = process_batch
        self._strategy = strategy
        self._max_queue_size = max_queue_size
        self._queue = WaitingQueue()
        self._pending: dict[int, _Pending[T, R]] = {}  # ticket → request, while it waits
        self._workers = [_IDLE] * num_workers
        self._num_idle = num_workers
        self._running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._finished = asyncio.Event()  # stopping, and nothing waits or runs any more
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._broken: Exception | None = None
        self._decision: asyncio.Handle | None = None  # the next decision, already scheduled
        self._timer: asyncio.TimerHandle | None = None
        self._latest_s = 0.0
        self._tally = Tally(num_workers)

    def start(self) -> None:
        """Begin to serve; called inside the event loop, once."""
        if self._loop is not None:
            raise RuntimeError("DynamicBatcher.start() was called twice")
        self._loop = asyncio.get_running_loop()
        self._latest_s = self._loop.time()

    async def stop(self, drain: bool = True) -> None:
        """Accept nothing more and wait for what runs.

        What still waits is served first, or, without `drain`, fails with `RequestFailed`.
        Stopping twice is allowed.
        """
        if self._loop is None:
            raise RuntimeError("DynamicBatcher.stop() was called before start()")
        self._stopping = True
        if not drain:
            self._fail_waiting(RequestFailed("the batcher was stopped before it was served"))
        self._wake()
        await self._finished.wait()

    async def submit(
        self,
        content: T,
        *,
        priority: int = RequestPriority.MEDIUM,
        num_tokens: int = 0,
        max_wait_s: float = _INFINITY,
        deadline_s: float = _INFINITY,
    ) -> Answered[R]:
        """Wait in the queue, be served in a batch, return the result.

        Args:
            priority: smaller is served first.
            num_tokens: size of the content, for strategies that look at it; 0: unknown.
            max_wait_s: bounds how long a batch may be formed around this request.
            deadline_s: absolute loop time by which it must have left the queue.

        Raises:
            QueueFull: at once, when `max_queue_size` requests wait.
            DeadlinePassed: at the deadline, when it still waits then.
            RequestFailed: the batcher was stopped without draining.
            Exception: whatever `process_batch` raised for the batch.
        """
        if self._loop is None:
            raise RuntimeError("DynamicBatcher.submit() was called before start()")
        if self._stopping:
            raise RuntimeError("DynamicBatcher.submit() was called after stop()")
        if self._broken is not None:
            raise self._broken
        now_s = self._now()
        if deadline_s <= now_s:
            self._tally.ended["timed_out"] += 1
            raise DeadlinePassed(f"the deadline passed {now_s - deadline_s:.3f} s before queueing")
        if len(self._queue) >= self._max_queue_size:
            self._tally.ended["rejected"] += 1
            raise QueueFull(f"{len(self._queue)} requests wait already (max_queue_size)")
        future: asyncio.Future[Answered[R]] = self._loop.create_future()
        ticket = self._queue.add(WaitingItem(priority, num_tokens, now_s, max_wait_s, deadline_s))
        self._pending[ticket] = _Pending(content, now_s, future)
        if self._num_idle:
            self._wake()
        elif self._timer is None or deadline_s < self._timer.when():
            self._arm(deadline_s)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():  # otherwise its end is counted already
                self._tally.ended["cancelled"] += 1
            if ticket in self._queue:
                self._queue.remove(ticket)
                del self._pending[ticket]
                self._wake()
            raise

    def stats(self) -> BatcherStats:
        """What happened so far."""
        now_s = self._now() if self._loop is not None else 0.0
        return self._tally.snapshot(len(self._queue), self._workers, now_s)

    def _now(self) -> float:
        """Loop time, never behind a timer that fired: loops fire up to their resolution early."""
        assert self._loop is not None
        self._latest_s = max(self._latest_s, self._loop.time())
        return self._latest_s

    def _wake(self) -> None:
        """Decide once everything that is ready now has run, so that it is in the queue by then."""
        assert self._loop is not None
        if self._decision is None:
            self._decision = self._loop.call_soon(self._decide)

    def _arm(self, time_s: float) -> None:
        if self._timer is not None and self._timer.when() == time_s:
            return
        self._disarm()
        if time_s != _INFINITY:
            assert self._loop is not None
            self._timer = self._loop.call_at(time_s, self._on_timer, time_s)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self, time_s: float) -> None:
        self._timer = None
        self._latest_s = max(self._latest_s, time_s)
        self._wake()

    def _decide(self) -> None:
        """Expire, dispatch as long as the strategy says so, then sleep until the next reason."""
        self._decision = None
        try:
            next_s = self._act()
        except Exception as error:  # noqa: BLE001 - a faulty strategy must reach the callers, not the loop's log
            self._broken = error
            self._fail_waiting(error)
            next_s = _INFINITY
        self._arm(next_s)
        if self._stopping and not self._queue and self._num_idle == len(self._workers):
            self._finished.set()

    def _act(self) -> float:
        now_s = self._now()
        for ticket in self._queue.take_expired(now_s):
            pending = self._pending.pop(ticket)
            self._end(pending, "timed_out", DeadlinePassed("the deadline passed in the queue"))
        wait_s = _INFINITY
        while self._queue and self._num_idle:
            view = QueueView(self._queue, now_s, tuple(self._workers), self._stopping)
            decision = self._strategy.decide(view)
            broken = broken_law(decision, view, self._strategy.max_batch_size)
            if broken is not None:
                raise RuntimeError(f"{self._strategy!r} broke a law of batching: {broken}")
            if isinstance(decision, WaitUntil):
                wait_s = decision.time_s
                break
            self._dispatch(decision, now_s)
        return min(wait_s, self._queue.earliest_deadline_s)

    def _dispatch(self, decision: Dispatch, now_s: float) -> None:
        assert self._loop is not None
        batch = [self._pending.pop(ticket) for ticket in self._queue.take(decision.indices)]
        self._workers[decision.worker] = WorkerView(busy_since_s=now_s)
        self._num_idle -= 1
        batch_id = self._tally.dispatched(len(batch), decision.reason)
        task = self._loop.create_task(self._serve(batch, batch_id, decision, now_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve(
        self, batch: list[_Pending[T, R]], batch_id: int, decision: Dispatch, dispatched_s: float
    ) -> None:
        """Run one batch on its worker and hand out what came of it, an error included."""
        size, worker = len(batch), decision.worker
        failure: Exception | None = None
        results: Sequence[R] = ()
        try:
            results = await self._process_batch([item.content for item in batch], worker)
            if len(results) != size:
                failure = RuntimeError(
                    f"process_batch returned {len(results)} results for {size} items"
                )
        except Exception as error:  # noqa: BLE001 - it belongs to the batch's callers
            failure = error
        except BaseException:
            failure = RequestFailed("the batch was cancelled")
            raise
        finally:
            done_s = self._now()
            self._workers[worker] = _IDLE
            self._num_idle += 1
            self._tally.served(size, worker, done_s - dispatched_s)
            if failure is not None:
                for item in batch:
                    self._end(item, "failed", failure)
            else:
                for item, value in zip(batch, results, strict=True):
                    if not item.future.done():
                        self._tally.ended["answered"] += 1
                        item.future.set_result(
                            Answered(
                                value,
                                batch_id,
                                size,
                                decision.reason,
                                item.enqueued_s,
                                dispatched_s,
                                done_s,
                            )
                        )
            if self._queue or self._stopping:
                self._wake()

    def _end(self, pending: _Pending[T, R], how: str, error: Exception) -> None:
        if not pending.future.done():
            self._tally.ended[how] += 1
            pending.future.set_exception(error)

    def _fail_waiting(self, error: Exception) -> None:
        for ticket in self._queue.take_all():
            self._end(self._pending.pop(ticket), "failed", error)
