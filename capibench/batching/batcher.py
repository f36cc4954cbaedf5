"""The machinery of batching, written once: queue, workers, deadlines, cancellation, errors.

A strategy decides, this acts. It sleeps until something can change a decision (an arrival, a free
worker, the time a strategy named, the earliest deadline) and asks nobody but the running loop for
the time, so that the same object serves real requests and runs under virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from capibench.batching.acting import Acting
from capibench.batching.alarm import Alarm
from capibench.batching.batch import BatchRecord
from capibench.batching.composition import AS_THEY_CAME, Composition
from capibench.batching.line import Line
from capibench.batching.own_error import own_error
from capibench.batching.request import Answered, QueuedRequest, RequestState, whole_tokens
from capibench.batching.room import Outside
from capibench.batching.serving import Serving
from capibench.batching.stats import BatcherStats, Tally
from capibench.batching.strategy import Strategy, WaitingItem
from capibench.batching.workers import Workers
from capibench.errors import (
    BatcherBroken,
    ConfigError,
    DeadlinePassed,
    QueueFull,
    RequestCancelled,
    RequestFailed,
)
from capibench.records import RequestPriority

T = TypeVar("T")
R = TypeVar("R")

_INFINITY = float("inf")


class Batcher(Generic[T, R]):
    """Gathers single requests into batches for `process_batch`, as `strategy` decides.

    Args:
        process_batch: async; takes contents (in order of priority, then arrival) and the worker's
            index, and returns one result per content in the same order. Where the strategy joins
            running batches it is called for each content alone, also while it runs others.
        strategy: decides; it belongs to this batcher alone, because it may remember things.
        num_workers: how many batches run at the same time.
        max_queue_size: waiting requests; one more is refused with `QueueFull`, or waits for room.
        composition: which of the waiting items leave together.
        sheds_overdue: keep waits bounded when more arrives than can be served. A request that has
            waited its own `max_wait_s` and is passed over by a worker with room ends as shed; so
            nobody who is served has waited longer than that and the service that was running
            then. Otherwise `max_wait_s` bounds only how long a free worker may be held back.
        isolates_failures: call `process_batch` again with parts of a batch that it failed, until
            the culprits are alone (`Isolation` says how often); otherwise all of it fail at once.
    """

    def __init__(
        self,
        process_batch: Callable[[Sequence[T], int], Awaitable[Sequence[R]]],
        strategy: Strategy,
        num_workers: int,
        max_queue_size: int,
        *,
        composition: Composition = AS_THEY_CAME,
        sheds_overdue: bool = False,
        isolates_failures: bool = True,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers: got {num_workers}; expected at least 1")
        if max_queue_size < 1:
            raise ValueError(f"max_queue_size: got {max_queue_size}; expected at least 1")
        self._strategy = strategy
        self._max_queue_size = max_queue_size
        self._composition = composition
        self._line: Line[T, R] = Line()
        self._outside: Outside[T, R] = Outside()
        self._finished = asyncio.Event()  # stopping, and nothing waits or runs any more
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm = Alarm(self._wake)
        self.now_s = self._alarm.now_s  # absolute loop seconds, as all about requests is counted
        self.check_loop = self._alarm.check_loop
        self._paused = False
        self._stopping = False
        self._refusal: Exception | None = None  # why nothing is accepted any more
        self._decision: asyncio.Handle | None = None  # the next decision, already scheduled
        self._started_s = 0.0
        self._tally = Tally(max_queue_size, pads=not strategy.joins_running)
        self._workers = Workers(num_workers, strategy)
        self._serving = Serving(
            process_batch,
            strategy,
            self._workers,
            self._tally,
            isolates_failures=isolates_failures,
            now_s=self.now_s,
            on_room=self._on_room,
            on_fault=self._break,
        )
        self._acting = Acting(
            strategy,
            self._line,
            self._workers,
            self._serving,
            self._tally,
            composition,
            sheds_overdue,
        )

    def start(self) -> None:
        """Begin to serve; called inside the event loop, once."""
        if self._loop is not None:
            raise RuntimeError("a batcher was started twice")
        self._loop = asyncio.get_running_loop()
        self._alarm.start(self._loop)
        self._started_s = self._alarm.now_s()

    async def stop(self, drain: bool = True, timeout_s: float | None = None) -> None:
        """Accept nothing more and wait for what runs; a pause ends.

        What still waits in the queue is served first, or, without `drain`, fails with
        `RequestFailed`, as does in any case what waits for room in the queue. So does, if all that
        takes longer than `timeout_s`, what waits or runs then, and the calls of `process_batch`
        are cancelled; one that hangs would otherwise be waited for, for ever. Stopping twice is
        allowed.

        Raises:
            RuntimeError: before start, in another event loop, or inside `process_batch`, for whose
                end it would wait.
        """
        if self._loop is None:
            raise RuntimeError("a batcher was stopped before start")
        if self._finished.is_set():
            return
        self.check_loop("stop")
        if self._serving.is_serving(asyncio.current_task()):
            raise RuntimeError(
                "stop: awaited inside process_batch, for whose end it waits; "
                "expected in a task of its own (asyncio.create_task)"
            )
        self._stopping = True
        self._refusal = self._refusal or RuntimeError("a request was submitted after stop")
        self._paused = False
        stopped = RequestFailed("the batcher was stopped before it was served")
        self._tally.end(self._outside.take_all(), RequestState.FAILED, stopped)
        if not drain:
            self._tally.end(self._line.take_all(), RequestState.FAILED, stopped)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                await self._finished.wait()
        except TimeoutError:
            self._tally.end(self._line.take_all(), RequestState.FAILED, stopped)
            await asyncio.sleep(0)  # what has just left the queue begins
            self._serving.give_up(
                RequestFailed(f"the batcher was stopped; it was not served within {timeout_s} s")
            )
            self._wake()
            await self._finished.wait()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def pause(self) -> None:
        """Let no further batch leave. Requests are accepted, time out and can be cancelled."""
        self._paused = True

    def resume(self) -> None:
        """Let batches leave again."""
        self._paused = False
        if self._loop is not None:
            self._wake()

    async def submit(
        self,
        content: T,
        *,
        priority: int = RequestPriority.MEDIUM,
        num_tokens: int = 0,
        max_wait_s: float = _INFINITY,
        deadline_s: float = _INFINITY,
        wait_for_room: bool = False,
    ) -> Answered[R]:
        """Wait in the queue, be served in a batch, return the result.

        Args:
            priority: smaller is served first.
            num_tokens: size of the content, for strategies that look at it; 0: unknown.
            max_wait_s: bounds how long a batch may be formed around this request.
            deadline_s: absolute loop time at which the answer is due. Who still waits then is taken
                out of the queue, since no answer can be in time any more; strategies may give up
                earlier who cannot be in time. What is running then goes on, and its answer is
                delivered late: it counts as answered, but not as in time.
            wait_for_room: wait, in order of arrival, until a full queue has room.

        Raises:
            QueueFull: at once, when `max_queue_size` requests wait (unless it waits for room).
            ValueError: at once, when `num_tokens` is no number of tokens.
            RuntimeError: at once, before start, after stop, or in another event loop.
            BatcherBroken: the strategy or the batcher itself is faulty.
            ConfigError: at once, when it is larger than the composition's token budget.
            RequestShed: the strategy gave it up, because it could not be in time, or it was
                overdue.
            DeadlinePassed: at the deadline, when it still waits then.
            RequestFailed: the batcher was stopped before it was served.
            Exception: whatever `process_batch` raised for this content alone, or for the batch
                where no single item is to blame.
        """
        request = self.enqueue(
            content,
            WaitingItem(priority, num_tokens, self.now_s(), max_wait_s, deadline_s),
            wait_for_room,
        )
        assert self._loop is not None
        waiter: asyncio.Future[Answered[R]] = self._loop.create_future()
        request.waiters = (waiter,)  # as `request.waiter()` does; nobody else waits for it
        try:
            return await waiter
        except asyncio.CancelledError:
            self.cancel(request)
            raise

    def enqueue(
        self,
        content: T,
        item: WaitingItem,
        wait_for_room: bool = False,
        on_end: Callable[[QueuedRequest[T, R]], None] | None = None,
    ) -> QueuedRequest[T, R]:
        """The same for those who come back for the answer: `await request.waiter()`.

        Args:
            item: enqueued now, as `now_s` says it.
            on_end: called once, when the request has ended in whatever way.
        """
        if self._refusal is not None:
            raise own_error(self._refusal)
        if asyncio.get_running_loop() is not self._loop:
            self.check_loop("submit")
        if type(item.num_tokens) is not int or item.num_tokens < 0:
            item = item._replace(num_tokens=whole_tokens("num_tokens", item.num_tokens))
        if item.deadline_s <= item.enqueued_s:
            self._tally.ended[RequestState.TIMED_OUT] += 1
            late_s = item.enqueued_s - item.deadline_s
            raise DeadlinePassed(f"the deadline passed {late_s:.3f} s before queueing")
        if self._composition.max_batch_tokens is not None:
            try:
                self._composition.check(item.num_tokens)
            except ConfigError:
                self._tally.ended[RequestState.REJECTED] += 1
                raise
        request = QueuedRequest(content, item, on_end)
        if self._outside.requests:
            self._let_in()
        if len(self._line.requests) < self._max_queue_size:
            self._admit(request)
        elif wait_for_room:
            assert self._loop is not None
            self._outside.add(request, self._loop, self._expire_outside)
        else:
            self._tally.ended[RequestState.REJECTED] += 1
            raise QueueFull(f"{len(self._line)} requests wait already (max_queue_size)")
        return request

    async def admitted(self, request: QueuedRequest[T, R]) -> None:
        """Wait until `request` has room in the queue, or has ended without."""
        await self._outside.wait(request)

    def cancel(self, request: QueuedRequest[T, R]) -> bool:
        """Take a request back; False when it has ended already.

        Its neighbours are unaffected: one that runs goes on running, and its result is dropped.
        """
        if request.outcome is not None:
            return False
        self.check_loop("cancel")
        if request in self._outside.requests:
            self._outside.remove(request)
        elif request.state is RequestState.PENDING:
            self._line.remove(request)
            self._wake()
        error = RequestCancelled("the request was cancelled")
        self._tally.end([request], RequestState.CANCELLED, error)
        return True

    def stats(self) -> BatcherStats:
        """What happened so far."""
        now_s = self.now_s() if self._loop is not None else 0.0
        return self._tally.snapshot(
            num_waiting=len(self._line),
            num_outside=len(self._outside),
            num_running=self._workers.num_running(),
            mean_running=self._workers.mean_running(now_s),
            max_batch_size=self._strategy.max_batch_size,
            busy_s=self._workers.busy_s(now_s),
            elapsed_s=now_s - self._started_s,
        )

    async def watch(self, interval_s: float) -> AsyncIterator[BatcherStats]:
        """The stats every `interval_s` of the loop's clock, and once more when all is finished."""
        if not interval_s > 0:
            raise ValueError(f"interval_s: got {interval_s}; expected more than 0")
        self.check_loop("watch")
        due_s = self.now_s()
        while not self._finished.is_set():
            due_s += interval_s
            try:
                async with asyncio.timeout_at(due_s):
                    await self._finished.wait()
            except TimeoutError:
                yield self.stats()
        yield self.stats()

    def history(self) -> list[BatchRecord]:
        """The newest batches that are done (at most 1,000), oldest first."""
        return self._tally.history()

    def _let_in(self) -> None:
        """Give free places to who waits for them, before anybody else gets one."""
        while self._outside and len(self._line) < self._max_queue_size:
            self._admit(self._outside.take_first())

    def _admit(self, request: QueuedRequest[T, R]) -> None:
        self._line.add(request)
        if self._workers.num_open:
            if self._decision is None:
                self._wake()
        else:
            self._alarm.set(request.item.deadline_s)

    def _wake(self) -> None:
        """Decide once everything that is ready now has run, so that it is in the queue by then."""
        if self._decision is None:
            assert self._loop is not None
            self._decision = self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        """Expire, dispatch as long as the strategy says so, then sleep until the next reason."""
        self._decision = None
        try:
            wait_s = self._acting.act(self.now_s(), self._paused, self._stopping)
            self._let_in()
            next_s = min(wait_s, self._line.items.earliest_deadline_s)
        except Exception as error:  # noqa: BLE001 - any fault must reach the callers, not the loop's log
            self._break(error)
            next_s = _INFINITY
        self._alarm.set(next_s)
        if self._stopping and not self._line and not self._workers.num_busy:
            self._alarm.clear()
            self._finished.set()

    def _expire_outside(self, request: QueuedRequest[T, R]) -> None:
        self._alarm.reached(request.item.deadline_s)
        self._outside.remove(request)
        late = DeadlinePassed("the deadline passed before the queue had room")
        self._tally.end([request], RequestState.TIMED_OUT, late)

    def _on_room(self) -> None:
        """Items have left a worker."""
        if self._line or self._stopping:
            self._wake()

    def _break(self, error: Exception) -> None:
        """The strategy, or the machinery itself, is faulty: nobody can be served any more."""
        self._refusal = broken = BatcherBroken.by(error)
        self._tally.end(self._outside.take_all(), RequestState.FAILED, broken)
        self._tally.end(self._line.take_all(), RequestState.FAILED, broken)
