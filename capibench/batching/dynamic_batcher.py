"""Batch any async function from Python: one object, no command line, no configuration file.

    from capibench.batching import BatchStrategy, DynamicBatcher, RequestPriority

    batcher = DynamicBatcher(process_batch, strategy=BatchStrategy.ADAPTIVE, max_batch_size=32)
    await batcher.start_processing()
    request_id = await batcher.submit_request("text", priority=RequestPriority.HIGH)
    answer = await batcher.result(request_id)
    await batcher.stop_processing()

It decides and serves nothing itself: strategies are built from `conf/batching`, requests go
through the same `Batcher` that serves the pipeline. What it adds is that requests have ids, and
that what became of them is kept until somebody asks.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Generic, TypeVar, cast

from capibench.batching.arguments import (
    check_count,
    check_ms,
    known_priority,
    known_strategy,
    one_per_worker,
)
from capibench.batching.batch import BatchRecord
from capibench.batching.batcher import Batcher
from capibench.batching.kept import Kept
from capibench.batching.outcome import BatchOutcome, outcome_of
from capibench.batching.request import QueuedRequest, RequestState
from capibench.batching.stats import BatcherStats
from capibench.batching.strategy import WaitingItem
from capibench.batching.strategy_choice import BatchStrategy, build_batching
from capibench.errors import WorkerBroken
from capibench.records import RequestPriority

T = TypeVar("T")
R = TypeVar("R")

_INFINITY = float("inf")
_log = logging.getLogger(__name__)


class DynamicBatcher(Generic[T, R]):
    """Gathers requests into batches, serves them by priority, and keeps the results by id.

    Args:
        process_batch: an async callable: list of contents → list of results in order; or several,
            one per worker, for replicas that may be of unequal speed.
        strategy: when batches leave.
        max_batch_size: requests in one batch at most; for CONTINUOUS, that run at once on a worker.
        max_wait_time_ms: how long the oldest request may be held back to form a batch, where the
            strategy holds any back.
        min_batch_size: fewer are held back until then. FIXED_SIZE, which holds back what is not
            full anyway, lets so many (2 or more) go after half of that time.
        max_queue_size: waiting requests; one more is refused, or waits for room.
        num_workers: calls of a single `process_batch` that may run at the same time.
        custom_config: further settings of the strategy, over those of its file in `conf/batching`;
            those of the composition (token budget, similar lengths) under the key "composition".
        count_tokens: size of a content, for strategies and compositions that look at it, and for
            the padding in the metrics; default: unknown.
        max_kept_results: ended requests whose result nobody has fetched yet; the oldest beyond
            that are dropped. As many states are kept beyond the results.
        sheds_overdue: reject who has waited `max_wait_time_ms` of its own and is passed over by a
            free worker, so that under overload nobody who is served waited longer than that and
            one service; otherwise requests are served late rather than never.

    Raises:
        ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        process_batch: Callable[[list[T]], Awaitable[Sequence[R]]]
        | Sequence[Callable[[list[T]], Awaitable[Sequence[R]]]],
        strategy: BatchStrategy = BatchStrategy.ADAPTIVE,
        max_batch_size: int = 32,
        max_wait_time_ms: float = 100,
        min_batch_size: int = 1,
        max_queue_size: int = 10_000,
        *,
        num_workers: int | None = None,
        custom_config: Mapping[str, Any] | None = None,
        count_tokens: Callable[[T], int] | None = None,
        max_kept_results: int = 10_000,
        sheds_overdue: bool = False,
    ) -> None:
        self._functions = one_per_worker(process_batch, num_workers)
        for name, count in (
            ("max_batch_size", max_batch_size),
            ("min_batch_size", min_batch_size),
            ("max_queue_size", max_queue_size),
            ("max_kept_results", max_kept_results),
        ):
            check_count(name, count)
        check_ms("max_wait_time_ms", max_wait_time_ms, finite=True)
        self.strategy = known_strategy(strategy)
        batching, self._settings = build_batching(
            self.strategy,
            max_batch_size=max_batch_size,
            min_batch_size=min_batch_size,
            max_wait_ms=max_wait_time_ms,
            max_queue_size=max_queue_size,
            custom_config=custom_config or {},
        )
        self._count_tokens = count_tokens
        self._batcher: Batcher[T, R] = Batcher(
            self._process,
            batching.strategy,
            len(self._functions),
            max_queue_size,
            composition=batching.composition,
            sheds_overdue=sheds_overdue,
        )
        self._kept: Kept[T, R] = Kept(max_kept_results)
        self._id_prefix = uuid.uuid4().hex[:12]
        self._num_ids = 0
        self._started = self._stopped = False
        self._callbacks: set[asyncio.Task[None]] = set()

    async def start_processing(self) -> None:
        """Begin to serve, in the running event loop; once."""
        if self._started:
            raise RuntimeError("start_processing: the batcher was started before; make a new one")
        self._batcher.start()
        self._started = True

    async def stop_processing(self, drain: bool = True) -> None:
        """Accept nothing more, and return when every request has ended and every callback too.

        What waits is served first, or, without `drain`, fails with `RequestFailed`; so does in any
        case who still waits for room in the queue. Results can be fetched afterwards.
        """
        self._check_started("stop_processing")
        self._stopped = True
        await self._batcher.stop(drain)
        while self._callbacks:
            await asyncio.wait(self._callbacks)

    def pause_processing(self) -> None:
        """Let no further batch leave; requests are still accepted, time out, can be cancelled."""
        self._batcher.pause()

    def resume_processing(self) -> None:
        """Let batches leave again."""
        self._batcher.resume()

    async def submit_request(
        self,
        content: T,
        priority: RequestPriority = RequestPriority.MEDIUM,
        max_wait_time_ms: float = 1000,
        deadline_ms: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        callback: Callable[[BatchOutcome[R]], object] | None = None,
        *,
        wait_for_room: bool = False,
    ) -> str:
        """Put one request into the queue. Returns its id, for `result` and the others.

        Args:
            max_wait_time_ms: bounds how long a batch may be formed around it.
            deadline_ms: from now, when the answer is due. If it still waits then, it ends as timed
                out; ADAPTIVE and PRIORITY_BASED reject it as soon as it cannot be in time. The
                answer of a batch that runs on past it is delivered, and counts as late.
            metadata: handed to the callback.
            callback: called once with the outcome when the request has ended in whatever way; it
                may be async. An error in it is logged and changes nothing.
            wait_for_room: return only when the queue has room for it, in order of arrival,
                instead of refusing it.

        Raises:
            QueueFull: `max_queue_size` requests wait.
            ValueError: an argument is wrong, or the content is larger than any batch may be.
            RuntimeError: before start, or after stop.
        """
        self._check_started("submit_request")
        if self._stopped:
            raise RuntimeError("submit_request: the batcher was stopped; make a new one")
        check_ms("max_wait_time_ms", max_wait_time_ms)
        if deadline_ms is not None and not deadline_ms > 0:
            raise ValueError(f"deadline_ms: got {deadline_ms!r}; expected above 0, or None")
        now_s = self._batcher.now_s()
        item = WaitingItem(
            known_priority(priority),
            0 if self._count_tokens is None else self._count_tokens(content),
            now_s,
            max_wait_time_ms / 1000,
            _INFINITY if deadline_ms is None else now_s + deadline_ms / 1000,
        )
        request_id = f"{self._id_prefix}-{self._num_ids}"
        ended = partial(self._ended, request_id, metadata, callback)
        request = self._batcher.enqueue(content, item, wait_for_room=wait_for_room, on_end=ended)
        self._num_ids += 1
        self._kept.add(request_id, request)
        if wait_for_room:
            try:
                await self._batcher.admitted(request)
            except asyncio.CancelledError:
                self._batcher.cancel(request)
                raise
        return request_id

    async def result(self, request_id: str) -> R:
        """Wait for the result and fetch it: afterwards only the state is kept.

        Who stops waiting leaves the request as it is; `cancel_request` takes it back.

        Raises:
            UnknownRequest: no such request, or its result was fetched or dropped.
            RequestFailed: rejected, timed out, cancelled, or stopped before it was served.
            Exception: whatever `process_batch` raised for it.
        """
        request = self._kept.request(request_id)
        try:
            return (await request.waiter()).value
        finally:
            if request.outcome is not None:
                self._kept.fetched(request_id)

    def cancel_request(self, request_id: str) -> bool:
        """Take a request back; False when it has ended already. Nobody else is affected."""
        if self._kept.state(request_id).is_end:
            return False
        return self._batcher.cancel(self._kept.request(request_id))

    def get_request_state(self, request_id: str) -> RequestState:
        """Where the request is, or how it ended.

        Raises:
            UnknownRequest: no such request, or it ended too long ago.
        """
        return self._kept.state(request_id)

    def get_batch_metrics(self) -> BatcherStats:
        """Everything that is counted, as of now."""
        return self._batcher.stats()

    def watch_batch_metrics(self, interval_ms: float = 1000) -> AsyncIterator[BatcherStats]:
        """The metrics again and again, until the batcher has stopped: `async for`."""
        return self._batcher.watch(interval_ms / 1000)

    def get_batcher_stats(self) -> dict[str, Any]:
        """Settings and metrics as plain values, JSON-serialisable."""
        metrics = asdict(self.get_batch_metrics())
        metrics["waits"] = {
            RequestPriority(priority).name.lower(): quantiles
            for priority, quantiles in metrics["waits"].items()
        }
        return {
            "strategy": self.strategy.value,
            "settings": self._settings,
            "num_workers": len(self._functions),
            "num_kept_results": len(self._kept),
            **metrics,
        }

    def get_batch_history(self, limit: int | None = None) -> list[BatchRecord]:
        """The newest `limit` batches that are done (all that are kept, 1,000, when None), newest
        first."""
        if limit is not None:
            check_count("limit", limit)
        return self._batcher.history()[::-1][:limit]

    async def _process(self, contents: Sequence[T], worker: int) -> Sequence[R]:
        results = self._functions[worker](list(contents))
        if not inspect.isawaitable(results):
            raise WorkerBroken(
                f"process_batch: got a {type(results).__name__}; expected an awaitable (async def)"
            )
        return cast(Sequence[R], await results)

    def _ended(
        self,
        request_id: str,
        metadata: Mapping[str, Any] | None,
        callback: Callable[[BatchOutcome[R]], object] | None,
        request: QueuedRequest[T, R],
    ) -> None:
        self._kept.ended(request_id)
        if callback is not None:
            task = asyncio.get_running_loop().create_task(
                _call(callback, outcome_of(request_id, request, metadata))
            )
            self._callbacks.add(task)
            task.add_done_callback(self._callbacks.discard)

    def _check_started(self, what: str) -> None:
        if not self._started:
            raise RuntimeError(
                f"{what}: the batcher was not started; await start_processing() first"
            )


async def _call(callback: Callable[[BatchOutcome[R]], object], outcome: BatchOutcome[R]) -> None:
    try:
        returned = callback(outcome)
        if inspect.isawaitable(returned):
            await returned
    except Exception:  # noqa: BLE001 - the caller's code must not stop the batcher
        _log.exception("the callback of request %s failed", outcome.request_id)
