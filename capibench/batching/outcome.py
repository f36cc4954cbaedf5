"""How a request ended, as those who sent it are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from capibench.batching.request import Answered, QueuedRequest, RequestState

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class BatchOutcome(Generic[R]):
    """How a request ended: what callbacks are given."""

    request_id: str
    state: RequestState
    result: R | None  # of a completed request
    error: Exception | None  # of any other
    metadata: Mapping[str, Any] | None  # as it was submitted
    batch_id: int | None  # None: it was not answered by a batch
    batch_size: int | None  # requests that left the queue together; CONTINUOUS runs each alone
    wait_ms: float | None  # in the queue
    service_ms: float | None


def outcome_of(
    request_id: str, request: QueuedRequest[Any, R], metadata: Mapping[str, Any] | None
) -> BatchOutcome[R]:
    """How `request`, which has ended, ended."""
    outcome = request.outcome
    if not isinstance(outcome, Answered):
        return BatchOutcome(
            request_id, request.state, None, outcome, metadata, None, None, None, None
        )
    return BatchOutcome(
        request_id,
        request.state,
        outcome.value,
        None,
        metadata,
        outcome.batch_id,
        outcome.batch_size,
        (outcome.dispatched_s - outcome.enqueued_s) * 1000,
        (outcome.done_s - outcome.dispatched_s) * 1000,
    )
