"""Back-pressure: callers that rather wait for a place in a full queue than be refused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from capibench.batching.request import QueuedRequest

T = TypeVar("T")
R = TypeVar("R")


class Outside(Generic[T, R]):
    """Requests outside the queue, in order of arrival; the batcher takes them in as places free.

    Each of them keeps its caller waiting, so that their number is that of the callers.
    """

    def __init__(self) -> None:
        self.requests: OrderedDict[QueuedRequest[T, R], asyncio.Future[None]] = OrderedDict()
        self._timers: dict[QueuedRequest[T, R], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self.requests)

    def add(
        self,
        request: QueuedRequest[T, R],
        loop: asyncio.AbstractEventLoop,
        expire: Callable[[QueuedRequest[T, R]], None],
    ) -> None:
        """Put `request` at the end; `expire` is called at its deadline if it is still here."""
        self.requests[request] = loop.create_future()
        if request.item.deadline_s != float("inf"):
            self._timers[request] = loop.call_at(request.item.deadline_s, expire, request)

    def remove(self, request: QueuedRequest[T, R]) -> None:
        """Let `request` go, wherever it goes."""
        place = self.requests.pop(request)
        if not place.done():
            place.set_result(None)
        timer = self._timers.pop(request, None)
        if timer is not None:
            timer.cancel()

    def take_first(self) -> QueuedRequest[T, R]:
        """Let the longest waiting one go, and return it."""
        request = next(iter(self.requests))
        self.remove(request)
        return request

    def take_all(self) -> list[QueuedRequest[T, R]]:
        """Let all go, and return them in order of arrival."""
        return [self.take_first() for _ in range(len(self))]

    async def wait(self, request: QueuedRequest[T, R]) -> None:
        """Until `request` is not here any more."""
        if request in self.requests:
            await asyncio.shield(self.requests[request])
