"""One batch, from the moment it leaves the queue until all of its requests have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from capibench.batching.request import QueuedRequest
from capibench.batching.strategy import Dispatch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that is done. Times are absolute loop seconds."""

    batch_id: int
    worker: int
    size: int
    reason: str  # why it left when it did
    dispatched_s: float
    done_s: float
    num_answered: int
    num_failed: int
    num_retries: int  # further runs that found out whose fault an error was
    real_tokens: int | None  # of all its items; None: a size is unknown, or they joined others
    padded_tokens: int | None  # rows times the longest: what a padded batch computes


class Batch(Generic[T, R]):
    """A running batch; parts of it may end before others."""

    def __init__(
        self,
        requests: Sequence[QueuedRequest[T, R]],
        decision: Dispatch,
        dispatched_s: float,
        batch_id: int,
        real_tokens: int | None,
        padded_tokens: int | None,
    ) -> None:
        self.requests = requests
        self.worker = decision.worker
        self.num_running = len(requests)  # on the worker, or waiting there for another try
        self.num_answered = self.num_failed = self.num_retries = 0
        self.reason = decision.reason
        self.dispatched_s = dispatched_s
        self.id = batch_id
        self._tokens = real_tokens, padded_tokens

    def record(self, done_s: float) -> tuple[Any, ...]:
        """The fields of its `BatchRecord` when it is done: few are ever looked at."""
        return (
            self.id,
            self.worker,
            len(self.requests),
            self.reason,
            self.dispatched_s,
            done_s,
            self.num_answered,
            self.num_failed,
            self.num_retries,
            *self._tokens,
        )
