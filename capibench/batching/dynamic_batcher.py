"""Batch any async function from Python: one object, no command line, no configuration file.

    from capibench.batching import BatchStrategy, DynamicBatcher, RequestPriority

    batcher = DynamicBatcher(process_batch, strategy=BatchStrategy.ADAPTIVE, max_batch_size=32)
    await batcher.start_processing()
    request_id = await batcher.submit_request("text", priority=RequestPriority.HIGH)
    answer = await batcher.result(request_id)
    await batcher.stop_processing()

It decides and serves nothing itself: strategies are built from `conf/batching`, requests go
through the same `Batcher` that serves the pipeline. What it adds is that requests have ids, and
that what became of them is kept until somebody asks. The errors that it raises by itself are those
of `capibench.errors`; besides, a wrong argument is a `ValueError` that names it, and a call before
start, after stop or from another event loop a `RuntimeError`.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Generic, TypeVar, cast

from capibench.batching.arguments import (
    check_callable,
    check_count,
    check_flag,
    check_ms,
    check_settings,
    check_some_ms,
    known_priority,
    known_strategy,
    one_per_worker,
)
from capibench.batching.batch import BatchRecord
from capibench.batching.batcher import Batcher
from capibench.batching.callbacks import Callbacks
from capibench.batching.kept import Kept
from capibench.batching.outcome import BatchOutcome, outcome_of
from capibench.batching.request import QueuedRequest, RequestState, whole_tokens
from capibench.batching.stats import BatcherStats
from capibench.batching.strategy import WaitingItem
from capibench.batching.strategy_choice import BatchStrategy, as_argument, build_batching
from capibench.errors import ConfigError, WorkerBroken
from capibench.records import RequestPriority

T = TypeVar("T")
R = TypeVar("R")

_INFINITY = float("inf")


class DynamicBatcher(Generic[T, R]):
    """Gathers requests into batches, serves them by priority, and keeps the results by id.

    Args:
        process_batch: an async callable: list of contents → one result for each, in order, as a
            sequence or an array; or several, one per worker, for replicas that may be of unequal
            speed. If it raises, it is called again with parts of the same contents, until it is
            known which of them it chokes on: those fail with its error, all others are answered
            (n contents cost 2n - 2 further calls at most). So what it did for a batch before it
            raised, it may do twice. Where that hurts, or if it cannot serve anybody, let it raise
            `WorkerBroken`, which fails the batch as it is; or see `isolates_failures`.
        strategy: when batches leave. CONTINUOUS calls `process_batch` for each request alone, with
            a list of one, as soon as a place is free: an engine merges the calls that run at once.
        max_batch_size: requests in one batch at most; for CONTINUOUS, that run at once on a worker.
        max_wait_time_ms: how long the oldest request may be held back to form a batch, where the
            strategy holds any back.
        min_batch_size: fewer are held back until then, unless no more would fit in their batch.
            FIXED_SIZE, which holds back what is not full anyway, lets so many (2 or more) go after
            half of that time.
        max_queue_size: waiting requests; one more is refused, or waits for room. No batch leaves
            while a task submits without ever waiting: see `submit_request`.
        num_workers: calls of a single `process_batch` that may run at the same time.
        custom_config: further settings of the strategy, over those of its file in `conf/batching`;
            those of the composition (token budget, similar lengths) under the key "composition".
        count_tokens: size of a content, a whole number, for strategies and compositions that look
            at it, and for the padding in the metrics; default: unknown.
        max_kept_results: ended requests whose result nobody has fetched yet; of more, the oldest
            are dropped, and `result` raises `UnknownRequest` for them. So who submits more than
            that before he fetches needs a larger one. As many states are kept beyond the results.
        sheds_overdue: reject who has waited `max_wait_time_ms` of its own and is passed over by a
            free worker, so that under overload nobody who is served waited longer than that and
            one service; otherwise requests are served late rather than never.
        isolates_failures: as said at `process_batch`; False: it is never called again with the
            same contents, and a batch in which it raises fails as a whole.

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
        isolates_failures: bool = True,
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
        check_settings("custom_config", custom_config)
        check_callable("count_tokens", count_tokens)
        check_flag("sheds_overdue", sheds_overdue)
        check_flag("isolates_failures", isolates_failures)
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
            isolates_failures=isolates_failures,
        )
        self._kept: Kept[T, R] = Kept(max_kept_results)
        self._id_prefix = uuid.uuid4().hex[:12]
        self._num_ids = 0
        self._started = False
        self._callbacks: Callbacks[R] = Callbacks()

    async def start_processing(self) -> None:
        """Begin to serve, in the running event loop; once."""
        if self._started:
            raise RuntimeError("start_processing: the batcher was started before; make a new one")
        self._batcher.start()
        self._started = True

    async def stop_processing(self, drain: bool = True, timeout_ms: float | None = None) -> None:
        """Accept nothing more, and return when every request has ended and every callback too.

        What waits is served first, or, without `drain`, fails with `RequestFailed`; so does in any
        case who still waits for room in the queue. Results can be fetched afterwards. A callback
        may await this; it then does not wait for the end of that callback.

        Args:
            timeout_ms: whoever is not answered by then fails with `RequestFailed`, and calls of
                `process_batch` that still run are cancelled. None: what runs is waited for, for
                ever if it hangs, even without `drain`. Callbacks are always waited for.

        Raises:
            RuntimeError: before start; inside `process_batch`, for whose end it would wait; or in
                another event loop.
        """
        self._check_started("stop_processing")
        if timeout_ms is not None:
            check_ms("timeout_ms", timeout_ms)
        await self._batcher.stop(drain, None if timeout_ms is None else timeout_ms / 1000)
        await self._callbacks.wait()

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

        It lets nothing else run before it returns, except to wait for room: a loop that does
        nothing but submit fills the queue before the first batch can leave, and is refused at
        `max_queue_size`. With `wait_for_room` such a loop goes as fast as it is served.

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
            RuntimeError: before start, after stop, or in another event loop.
            BatcherBroken: the strategy is faulty, and nothing is served any more.
        """
        self._check_started("submit_request")
        if self._batcher.is_stopping:
            raise RuntimeError("submit_request: the batcher was stopped; make a new one")
        check_ms("max_wait_time_ms", max_wait_time_ms)
        if deadline_ms is not None:
            check_some_ms("deadline_ms", deadline_ms, ", or None")
        if callback is not None:
            check_callable("callback", callback)
        now_s = self._batcher.now_s()
        item = WaitingItem(
            known_priority(priority),
            0
            if self._count_tokens is None
            else whole_tokens("count_tokens", self._count_tokens(content)),
            now_s,
            max_wait_time_ms / 1000,
            _INFINITY if deadline_ms is None else now_s + deadline_ms / 1000,
        )
        request_id = f"{self._id_prefix}-{self._num_ids}"
        ended = partial(self._ended, request_id, metadata, callback)
        try:
            request = self._batcher.enqueue(content, item, wait_for_room, ended)
        except ConfigError as error:
            raise as_argument(error, {}) from None
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
            UnknownRequest: no such request, or its result was fetched, or dropped because
                `max_kept_results` others ended after it.
            RequestFailed: rejected, timed out, cancelled, or stopped before it was served.
            BatcherBroken: the strategy is faulty, and nothing is served any more.
            RuntimeError: in another event loop, while it has not ended.
            Exception: whatever `process_batch` raised for it.
        """
        request = self._kept.request(request_id)
        if request.outcome is None:
            self._batcher.check_loop("result")
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
        self._check_started("watch_batch_metrics")
        check_some_ms("interval_ms", interval_ms)
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
            self._callbacks.begin(callback, outcome_of(request_id, request, metadata))

    def _check_started(self, what: str) -> None:
        if not self._started:
            raise RuntimeError(
                f"{what}: the batcher was not started; await start_processing() first"
            )
