"""Running the batches that left the queue, and handing out what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Generic, TypeVar, cast

from capibench.batching.batch import Batch
from capibench.batching.isolation import Isolation
from capibench.batching.request import Answered, QueuedRequest, RequestState
from capibench.batching.stats import Tally
from capibench.batching.strategy import LearnsService, Served, Strategy
from capibench.batching.workers import Workers
from capibench.errors import RequestFailed, WorkerBroken

T = TypeVar("T")
R = TypeVar("R")


class Serving(Generic[T, R]):
    """One call of `process_batch` per batch; where the strategy joins running batches, one per
    item, all at once, so that each is answered and frees its place as soon as it is done.

    A batch whose run raises is run again in parts until the culprits are alone (`Isolation`), on
    the same worker and before that takes new work. Not after `WorkerBroken`, nor after results
    whose owners nobody can know: no item is to blame for these, and all whom the error met fail at
    once.

    Args:
        isolates_failures: as above; otherwise all of a batch that fails share its error.
        now_s: the batcher's clock.
        on_room: called when items have left a worker.
        on_fault: called with what the strategy raised when it was told a service time, and with
            any error of this machinery itself.
    """

    def __init__(
        self,
        process_batch: Callable[[Sequence[T], int], Awaitable[Sequence[R]]],
        strategy: Strategy,
        workers: Workers,
        tally: Tally,
        *,
        isolates_failures: bool,
        now_s: Callable[[], float],
        on_room: Callable[[], None],
        on_fault: Callable[[Exception], None],
    ) -> None:
        self._process_batch = process_batch
        self._joins_running = strategy.joins_running
        self._learner = strategy if isinstance(strategy, LearnsService) else None
        self._workers = workers
        self._tally = tally
        self._isolates_failures = isolates_failures
        self._now_s = now_s
        self._on_room = on_room
        self._on_fault = on_fault
        # What each task serves; the loop itself holds tasks weakly.
        self._tasks: dict[asyncio.Task[None], Sequence[QueuedRequest[T, R]]] = {}

    def begin(self, batch: Batch[T, R]) -> None:
        """Put `batch` on its worker."""
        requests = batch.requests
        self._workers.enter(batch.worker, len(requests), batch.dispatched_s)
        loop = asyncio.get_running_loop()
        for part in [[request] for request in requests] if self._joins_running else [requests]:
            self._tasks[loop.create_task(self._serve(batch, part))] = part

    def is_serving(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` is one in which `process_batch` runs."""
        return task in self._tasks

    def give_up(self, error: Exception) -> None:
        """End all that run as failed and cancel the calls, which have begun all."""
        for task, part in list(self._tasks.items()):
            self._tally.end(part, RequestState.FAILED, error)
            task.cancel()

    async def _serve(self, batch: Batch[T, R], part: Sequence[QueuedRequest[T, R]]) -> None:
        try:
            failure = await self._run(batch, part)
            if failure is not None:
                await self._isolate(batch, part, failure)
        except Exception as error:  # noqa: BLE001 - a fault of ours must reach the callers, not the loop's log
            self._abandon(batch, part, error)
            self._on_fault(error)
        except BaseException:  # this task was cancelled, or the program is ending
            self._abandon(batch, part, RequestFailed("the batch was cancelled"))
            raise
        finally:
            task = asyncio.current_task()
            assert task is not None
            del self._tasks[task]

    async def _isolate(
        self, batch: Batch[T, R], failed: Sequence[QueuedRequest[T, R]], failure: Exception
    ) -> None:
        """Run parts of what has failed until every item's end is known."""
        if isinstance(failure, WorkerBroken) or not self._isolates_failures:
            self._fail(batch, failed, failure)
            return
        isolation = Isolation(failed)
        self._fail(batch, isolation.lost, failure)
        while (part := isolation.next()) is not None:
            wanted = [request for request in part if request.outcome is None]
            if len(wanted) < len(part):  # their callers gave up meanwhile
                self._leave(batch, len(part) - len(wanted), self._now_s())
            if not wanted:
                continue
            batch.num_retries += 1
            self._tally.num_retries += 1
            again = await self._run(batch, wanted)
            if again is None:
                isolation.succeeded()
            elif isinstance(again, WorkerBroken):
                self._fail(batch, [*wanted, *isolation.rest()], again)
            else:
                self._fail(batch, isolation.failed(wanted), again)

    async def _run(
        self, batch: Batch[T, R], part: Sequence[QueuedRequest[T, R]]
    ) -> Exception | None:
        """Returns what went wrong; None: all of `part` is answered and has left the worker."""
        size, learner = len(part), self._learner
        begin_s = 0.0 if learner is None else self._now_s()
        self._tally.num_calls += 1
        try:
            results = _listed(
                await self._process_batch([r.content for r in part], batch.worker), size
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return RequestFailed("process_batch raised CancelledError, though nobody cancelled it")
        except Exception as error:  # noqa: BLE001 - it belongs to the batch's callers
            return error
        done_s = self._now_s()
        num_answered = num_in_time = 0
        id_, whole, reason = batch.id, len(batch.requests), batch.reason
        dispatched_s = batch.dispatched_s
        for request, value in zip(part, results, strict=True):
            if request.outcome is None:
                item = request.item
                num_answered += 1
                if done_s <= item.deadline_s:
                    num_in_time += 1
                request.answer(
                    Answered(value, id_, whole, reason, item.enqueued_s, dispatched_s, done_s)
                )
        self._tally.answered(num_answered, num_in_time)
        batch.num_answered += num_answered
        self._leave(batch, size, done_s)
        if learner is not None:
            tokens = [request.item.num_tokens for request in part]
            try:
                learner.observe(Served(batch.worker, tokens, done_s - begin_s))
            except Exception as error:  # noqa: BLE001 - it must reach the callers, not the loop's log
                self._on_fault(error)
        return None

    def _fail(
        self, batch: Batch[T, R], part: Sequence[QueuedRequest[T, R]], error: Exception
    ) -> None:
        batch.num_failed += self._tally.end(part, RequestState.FAILED, error)
        if part:
            self._leave(batch, len(part), self._now_s())

    def _abandon(
        self, batch: Batch[T, R], part: Sequence[QueuedRequest[T, R]], error: Exception
    ) -> None:
        """End what of `part` has no end, whatever of it has left the worker already."""
        batch.num_failed += self._tally.end(part, RequestState.FAILED, error)
        if batch.num_running:
            self._leave(batch, min(len(part), batch.num_running), self._now_s())

    def _leave(self, batch: Batch[T, R], num_items: int, now_s: float) -> None:
        """Free the places of so many of the batch's items; the last ones end it."""
        batch.num_running -= num_items
        self._workers.leave(batch.worker, num_items, now_s)
        if batch.num_answered:
            self._workers.answered(batch.worker)
        if not batch.num_running:
            if batch.num_failed and not batch.num_answered:
                self._workers.failed(batch.worker)
            self._tally.done(batch, now_s)
        self._on_room()


def _listed(results: object, size: int) -> Sequence[Any]:
    """One result per item, in their order: a sequence or an array of one dimension or more.

    Raises:
        WorkerBroken: anything else, of which nobody could say whose result is whose; a mapping
            or a string of the right length, say.
    """
    if not isinstance(results, list | tuple):
        in_order = isinstance(results, Sequence) and not isinstance(results, str | bytes)
        is_array = getattr(results, "ndim", 0) >= 1 and not hasattr(results, "keys")
        if isinstance(results, Mapping | Set) or not (in_order or is_array):
            raise WorkerBroken(
                f"process_batch returned a {type(results).__name__} for {size} items; "
                "expected a sequence (or an array) of one result per item, in their order"
            )
        results = list(cast(Iterable[Any], results))
    if len(results) != size:
        raise WorkerBroken(f"process_batch returned {len(results)} results for {size} items")
    return results
