"""What became of requests, by id, until somebody asks; in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from capibench.batching.request import QueuedRequest, RequestState
from capibench.errors import UnknownRequest

T = TypeVar("T")
R = TypeVar("R")


class Kept(Generic[T, R]):
    """Requests that have not ended, the `most` newest ended ones that nobody has fetched, and the
    mere states of as many others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._requests: dict[str, QueuedRequest[T, R]] = {}
        # In the order of their ends. Plain dicts are slow at giving up their oldest entry.
        self._ended: OrderedDict[str, None] = OrderedDict()  # those of `_requests` that have ended
        self._states: OrderedDict[str, RequestState] = OrderedDict()  # of those no more in it

    def __len__(self) -> int:
        """How many results wait to be fetched."""
        return len(self._ended)

    def add(self, request_id: str, request: QueuedRequest[T, R]) -> None:
        """Keep a request that has just begun."""
        self._requests[request_id] = request

    def ended(self, request_id: str) -> None:
        """The request has ended: from now on it may be dropped."""
        self._ended[request_id] = None
        if len(self._ended) > self._most:
            self.fetched(next(iter(self._ended)))

    def fetched(self, request_id: str) -> None:
        """Nobody needs the result of this ended request any more; keep its state only."""
        request = self._requests.pop(request_id, None)
        if request is None:  # two waited for it
            return
        del self._ended[request_id]
        self._states[request_id] = request.state
        if len(self._states) > self._most:
            self._states.popitem(last=False)

    def request(self, request_id: str) -> QueuedRequest[T, R]:
        """The request itself.

        Raises:
            UnknownRequest: its result is not kept.
        """
        request = self._requests.get(request_id)
        if request is None:
            raise UnknownRequest(
                f"request_id: got {request_id!r}; expected that of a request whose result was "
                f"not fetched yet (of ended ones the newest {self._most} are kept)"
            )
        return request

    def state(self, request_id: str) -> RequestState:
        """Where it is, or how it ended.

        Raises:
            UnknownRequest: not even that is kept.
        """
        request = self._requests.get(request_id)
        if request is not None:
            return request.state
        if request_id not in self._states:
            raise UnknownRequest(
                f"request_id: got {request_id!r}; expected that of a request that was submitted "
                f"here and has not ended long ago"
            )
        return self._states[request_id]
