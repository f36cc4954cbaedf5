"""Doing what a strategy decides, and telling it at once where it decides what it may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from capibench.batching.batch import Batch
from capibench.batching.composition import Composition
from capibench.batching.laws import broken_law
from capibench.batching.line import Line
from capibench.batching.request import QueuedRequest, RequestState
from capibench.batching.serving import Serving
from capibench.batching.stats import Tally
from capibench.batching.strategy import Dispatch, QueueView, Shed, Strategy, WaitUntil
from capibench.batching.workers import Workers
from capibench.errors import BatcherBroken, DeadlinePassed, RequestShed

T = TypeVar("T")
R = TypeVar("R")

_INFINITY = float("inf")
_PROCESSING = RequestState.PROCESSING  # looked up for every request: an enum's attributes are slow


class Acting(Generic[T, R]):
    """Takes requests out of the line: to a worker, or to an end without an answer."""

    def __init__(
        self,
        strategy: Strategy,
        line: Line[T, R],
        workers: Workers,
        serving: Serving[T, R],
        tally: Tally,
        composition: Composition,
        sheds_overdue: bool,
    ) -> None:
        self._strategy = strategy
        self._line = line
        self._workers = workers
        self._serving = serving
        self._tally = tally
        self._composition = composition
        self._sheds_overdue = sheds_overdue

    def act(self, now_s: float, paused: bool, draining: bool) -> float:
        """Expire, then dispatch and shed as long as the strategy says so; returns when to act
        again at the latest, absolute loop seconds.

        Raises:
            BatcherBroken: the strategy broke a law.
            Exception: whatever it raised, or a fault of this machinery. No request is lost: each
                is in the line, on a worker, or has ended.
        """
        line, workers = self._line, self._workers
        self._tally.queued(len(line))
        if line.items.earliest_deadline_s <= now_s:
            late = DeadlinePassed("the deadline passed in the queue")
            self._tally.end(line.take_expired(now_s), RequestState.TIMED_OUT, late)
        wait_s, asked = _INFINITY, False
        while line.requests and workers.num_open and not paused:
            asked = True
            view = QueueView(line.items, now_s, workers.views(), draining, self._composition)
            decision = self._strategy.decide(view)
            broken = broken_law(decision, view, self._strategy)
            if broken is not None:
                raise BatcherBroken(f"{self._strategy!r} broke a law of batching: {broken}")
            if isinstance(decision, WaitUntil):
                wait_s = decision.time_s
                break
            if isinstance(decision, Shed):
                self._shed(line.take(decision.indices), decision.reason)
            else:
                self._dispatch(decision, now_s)
        if asked and self._sheds_overdue and line.items.earliest_bound_s <= now_s:
            self._shed(line.take_overdue(now_s), "max_wait")
        return wait_s

    def _dispatch(self, decision: Dispatch, now_s: float) -> None:
        requests = self._line.take(decision.indices)
        try:
            for request in requests:
                request.state = _PROCESSING
            counted = self._tally.dispatched(requests, decision, now_s)
            self._serving.begin(Batch(requests, decision, now_s, *counted))
        except Exception as error:
            self._tally.end(requests, RequestState.FAILED, BatcherBroken.by(error))
            raise

    def _shed(self, requests: Sequence[QueuedRequest[T, R]], reason: str) -> None:
        error = RequestShed(f"given up in the queue: {reason}")
        self._tally.end(requests, RequestState.REJECTED, error)
        self._tally.shed_reasons[reason] += len(requests)
