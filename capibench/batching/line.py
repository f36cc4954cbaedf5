"""The requests in the queue, beside what strategies see of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from capibench.batching.request import QueuedRequest
from capibench.batching.waiting import WaitingQueue

T = TypeVar("T")
R = TypeVar("R")


class Line(Generic[T, R]):
    """A `WaitingQueue` whose items belong to requests."""

    def __init__(self) -> None:
        self.items = WaitingQueue()
        self.requests: dict[int, QueuedRequest[T, R]] = {}  # by ticket

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: QueuedRequest[T, R]) -> None:
        """Put `request` at the end."""
        request.ticket = ticket = self.items.add(request.item)
        self.requests[ticket] = request

    def remove(self, request: QueuedRequest[T, R]) -> None:
        """Take `request`, which is in it, out of it."""
        self.items.remove(request.ticket)
        del self.requests[request.ticket]

    def take(self, indices: Sequence[int]) -> list[QueuedRequest[T, R]]:
        """Take out those at `indices` into `items`, in that order."""
        return self._released(self.items.take(indices))

    def take_expired(self, now_s: float) -> list[QueuedRequest[T, R]]:
        """Take out those whose deadline is not after `now_s`."""
        return self._released(self.items.take_expired(now_s))

    def take_overdue(self, now_s: float) -> list[QueuedRequest[T, R]]:
        """Take out those that have waited their own `max_wait_s` at `now_s`."""
        return self._released(self.items.take_overdue(now_s))

    def take_all(self) -> list[QueuedRequest[T, R]]:
        """Empty it."""
        return self._released(self.items.take_all())

    def _released(self, tickets: Sequence[int]) -> list[QueuedRequest[T, R]]:
        return [self.requests.pop(ticket) for ticket in tickets]
