"""One request on its way through a batcher, and what comes out at the end of it."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from capibench.batching.own_error import own_error
from capibench.batching.strategy import WaitingItem

T = TypeVar("T")
R = TypeVar("R")


class RequestState(StrEnum):
    """Where a request is; everything after `PROCESSING` is an end, and every request has one."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    REJECTED = "rejected"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing more happens to a request in this state."""
        return self not in (RequestState.PENDING, RequestState.PROCESSING)


# Looked up for every request, and an enum's own attributes are slow.
_PENDING, _COMPLETED = RequestState.PENDING, RequestState.COMPLETED


def whole_tokens(name: str, num_tokens: object) -> int:
    """The size of a content as a plain int, which is what strategies reckon with.

    Raises:
        ValueError: it is no number of tokens.
    """
    try:
        tokens = operator.index(num_tokens)  # type: ignore[arg-type]
    except TypeError:
        tokens = -1
    if tokens < 0:
        raise ValueError(f"{name}: got {num_tokens!r}; expected a whole number, at least 0")
    return tokens


class Answered(NamedTuple, Generic[R]):
    """One request's result and how it came about. Times are absolute loop seconds."""

    value: R
    batch_id: int
    batch_size: int  # that left the queue together
    reason: str  # why the batch left when it did
    enqueued_s: float
    dispatched_s: float
    done_s: float


class QueuedRequest(Generic[T, R]):
    """A request that a batcher accepted. It is changed by that batcher only.

    `outcome` is the answer of a completed request, the error of one that ended otherwise, and None
    before the end. `on_end`, if there is one, is called once, in the moment of the end.
    """

    __slots__ = ("content", "item", "on_end", "outcome", "state", "ticket", "waiters")
    ticket: int  # in the queue; it has one only once it is there

    def __init__(
        self, content: T, item: WaitingItem, on_end: Callable[[QueuedRequest[T, R]], None] | None
    ) -> None:
        self.content = content
        self.item = item
        self.on_end = on_end
        self.state = _PENDING
        self.outcome: Answered[R] | Exception | None = None
        self.waiters: Sequence[asyncio.Future[Answered[R]]] = ()

    def answer(self, answered: Answered[R]) -> None:
        """The good end."""
        self.state = _COMPLETED
        self.outcome = answered
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(answered)
        if self.on_end is not None:
            self.on_end(self)

    def end(self, state: RequestState, error: Exception) -> None:
        """Any other end."""
        self.state = state
        self.outcome = error
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(own_error(error))
                waiter.exception()  # seen, even if its task is cancelled in this same instant
        if self.on_end is not None:
            self.on_end(self)

    def waiter(self) -> asyncio.Future[Answered[R]]:
        """A future of the answer, or of the error, for one who waits. To cancel it is to stop
        waiting: the request goes on as it is."""
        waiter: asyncio.Future[Answered[R]] = asyncio.get_running_loop().create_future()
        if self.outcome is None:
            others = [other for other in self.waiters if not other.done()] if self.waiters else ()
            self.waiters = (*others, waiter)
        elif isinstance(self.outcome, Exception):
            waiter.set_exception(own_error(self.outcome))
        else:
            waiter.set_result(self.outcome)
        return waiter
