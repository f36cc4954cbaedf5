"""What a batcher counted: not how good it was (the rows say that), but what it was doing."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from capibench.batching.batch import Batch, BatchRecord
from capibench.batching.own_error import own_error
from capibench.batching.request import QueuedRequest, RequestState
from capibench.batching.strategy import Dispatch

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 10_000  # newest waits of each class that quantiles are taken over
HISTORY = 1_000  # newest batches that are remembered


@dataclass(frozen=True, slots=True)
class WaitQuantiles:
    """How long requests of one class stood in the queue before their batch left, exactly, over
    the newest 10,000 of them. A description of that window without an interval; a quantile beyond
    which the window has no sample is None (p99 needs 100)."""

    num_waits: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """Counts since the start. Every request ends in exactly one of the first five."""

    num_answered: int
    num_failed: int  # its batch raised, or the batcher stopped before it was served
    num_rejected: int  # the queue was full, or it was shed
    num_timed_out: int  # its deadline passed while it waited
    num_cancelled: int  # its caller gave up, waiting or running
    num_waiting: int  # not ended yet: in the queue
    num_outside: int  # not ended yet: wait for room in the queue
    num_running: int  # in a running batch, whether or not its caller still waits
    num_in_time: int  # of those answered: by their deadline, or they had none
    num_batches: int  # that left the queue
    num_calls: int  # of process_batch: one per batch, or one per item where items join running ones
    num_retries: int  # of these calls: with parts of batches that failed
    # Items per batch; where items join running ones, that ran at once on a worker while it was not
    # idle (its mean over time), each in a call of its own. None: none has run for any time.
    mean_batch_size: float | None
    efficiency: float | None  # mean size over the largest possible: a load meter, not a merit
    elapsed_s: float  # since the start, on the loop's clock; what follows is per second of it
    answered_per_s: float | None
    goodput_per_s: float | None  # in time
    queue_utilisation: float  # waiting over the most that may wait, now
    peak_queue_utilisation: float
    reasons: Mapping[str, int]  # dispatch reason → batches
    shed_reasons: Mapping[str, int]  # why the strategy gave requests up → requests
    waits: Mapping[int, WaitQuantiles]  # by priority
    real_tokens: int | None  # of batches whose items' sizes are known; None: no such, or joined
    padded_tokens: int | None
    busy_s: Sequence[float]  # per worker; joined batches count once, running ones are included


class Tally:
    """The running counts behind `BatcherStats`, cheap enough to be always on."""

    def __init__(self, max_queue_size: int, pads: bool) -> None:
        self.ended: Counter[RequestState] = Counter()  # other than by an answer
        self.shed_reasons: Counter[str] = Counter()
        self._records: deque[tuple[Any, ...]] = deque(maxlen=HISTORY)
        self._num_answered = 0
        self._num_in_time = 0
        self.num_calls = self.num_retries = 0
        self._max_queue_size = max_queue_size
        self._pads = pads  # whether the items of a batch are computed as one
        self._peak_waiting = 0
        self._reasons: Counter[str] = Counter()
        self._waits: dict[int, deque[float]] = {}
        self._num_batches = 0
        self._num_dispatched = 0
        self._real_tokens = 0
        self._padded_tokens = 0

    def dispatched(
        self, batch: Sequence[QueuedRequest[T, R]], decision: Dispatch, now_s: float
    ) -> tuple[int, int | None, int | None]:
        """Count a batch that leaves; returns its id, its real tokens and its padded tokens."""
        size = len(batch)
        batch_id = self._num_batches
        self._num_batches += 1
        self._num_dispatched += size
        self._reasons[decision.reason] += 1
        waits = self._waits
        for request in batch:
            item = request.item
            window = waits.get(item.priority)
            if window is None:
                window = waits[item.priority] = deque(maxlen=WINDOW)
            window.append(now_s - item.enqueued_s)
        if not self._pads or not batch[0].item.num_tokens:
            return batch_id, None, None
        tokens = [request.item.num_tokens for request in batch]
        if 0 in tokens:
            return batch_id, None, None
        real, padded = sum(tokens), size * max(tokens)
        self._real_tokens += real
        self._padded_tokens += padded
        return batch_id, real, padded

    def answered(self, num_answered: int, num_in_time: int) -> None:
        """Count requests that got their answer, and how many of them by their deadline."""
        self._num_answered += num_answered
        self._num_in_time += num_in_time

    def end(
        self, requests: Iterable[QueuedRequest[T, R]], state: RequestState, error: Exception
    ) -> int:
        """End and count those requests that have no end yet, other than by an answer, each with
        an `error` of its own; returns how many that were."""
        num_ended = 0
        for request in requests:
            if request.outcome is None:
                request.end(state, own_error(error))
                num_ended += 1
        self.ended[state] += num_ended
        return num_ended

    def done(self, batch: Batch[T, R], now_s: float) -> None:
        """Remember a batch all of whose items have ended."""
        self._records.append(batch.record(now_s))

    def history(self) -> list[BatchRecord]:
        """The newest batches that are done, oldest first."""
        return [BatchRecord(*record) for record in self._records]

    def queued(self, num_waiting: int) -> None:
        """Note how many wait, at a moment when they may be many."""
        if num_waiting > self._peak_waiting:
            self._peak_waiting = num_waiting

    def snapshot(
        self,
        num_waiting: int,
        num_outside: int,
        num_running: int,
        mean_running: float | None,
        max_batch_size: int,
        busy_s: Sequence[float],
        elapsed_s: float,
    ) -> BatcherStats:
        """The counts as of now, with what the others know."""
        mean_size = mean_running
        if self._pads:
            mean_size = self._num_dispatched / self._num_batches if self._num_batches else None
        answered = self._num_answered
        return BatcherStats(
            num_answered=answered,
            num_failed=self.ended[RequestState.FAILED],
            num_rejected=self.ended[RequestState.REJECTED],
            num_timed_out=self.ended[RequestState.TIMED_OUT],
            num_cancelled=self.ended[RequestState.CANCELLED],
            num_waiting=num_waiting,
            num_outside=num_outside,
            num_running=num_running,
            num_in_time=self._num_in_time,
            num_batches=self._num_batches,
            num_calls=self.num_calls,
            num_retries=self.num_retries,
            mean_batch_size=mean_size,
            efficiency=None if mean_size is None else mean_size / max_batch_size,
            elapsed_s=elapsed_s,
            answered_per_s=answered / elapsed_s if elapsed_s > 0 else None,
            goodput_per_s=self._num_in_time / elapsed_s if elapsed_s > 0 else None,
            queue_utilisation=num_waiting / self._max_queue_size,
            peak_queue_utilisation=self._peak_waiting / self._max_queue_size,
            reasons=dict(self._reasons),
            shed_reasons=dict(self.shed_reasons),
            waits={priority: _quantiles(self._waits[priority]) for priority in sorted(self._waits)},
            real_tokens=self._real_tokens if self._padded_tokens else None,
            padded_tokens=self._padded_tokens or None,
            busy_s=busy_s,
        )


def _quantiles(window: deque[float]) -> WaitQuantiles:
    ordered = sorted(window)
    return WaitQuantiles(len(ordered), *(_quantile(ordered, share) for share in (0.5, 0.95, 0.99)))


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest sample that at least `share` of all do not exceed, if any lies beyond it."""
    rank = math.ceil(share * len(ordered))
    return ordered[rank - 1] if 1 <= rank < len(ordered) else None
