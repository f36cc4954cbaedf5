"""Single flight: who misses what somebody else is computing already waits for that result.

One registry for threads and event loops: a flight ends in a `concurrent.futures.Future`, on which a
thread blocks and which a coroutine awaits. Nobody waits for what waits for himself, over any number
of flights and caches: he computes it too. What a computation asks for is known by its context,
which tasks and `asyncio.to_thread` inherit, and a thread pool does not.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import ReferenceType, ref

_LOOK_S = 1.0  # how often who waits looks whether anybody is still computing


class LeaderLeft(Exception):
    """Who computed was cancelled and has no result; whoever waits tries itself."""


class Flight:
    """One computation that is under way."""

    __slots__ = ("__weakref__", "future", "needs", "since", "task", "thread")

    def __init__(self, since: int, task: asyncio.Task[Any] | None) -> None:
        self.since = since  # where the log of invalidations stood when it began
        self.thread = threading.get_ident()
        self.task = task
        self.needs: list[Flight] = []  # that it waits for, or leads in turn
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # nobody who waits can cancel it for others

    @property
    def is_abandoned(self) -> bool:
        """Whether its event loop was closed or stopped before it ended."""
        return self.task is not None and not self.task.get_loop().is_running()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Tell all who wait; the first end counts."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)


# Of all registries, since a computation in one cache may need another one's. Reentrant, and never
# held while another lock is waited for: a signal handler may end flights at any moment.
_lock = threading.RLock()
_blocked: dict[int, Flight] = {}  # thread -> what it waits for
_within: ContextVar[ReferenceType[Flight] | None] = ContextVar("flight", default=None)


class Flights:
    """Thread-safe. Who leads a flight must end it, by `land` or `crash`."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._open: set[Flight] = set()  # those among them that were replaced, too
        self.num_joined = 0

    def join(
        self,
        key: bytes,
        since: int,
        task: asyncio.Task[Any] | None,
        is_outdated: Callable[[Flight], bool],
    ) -> tuple[Flight, bool]:
        """The flight for `key`, and whether the caller leads it and computes; else it must wait.

        A flight that `is_outdated` (what it rests on was invalidated since) is nobody's to join;
        the caller leads a new one in its place. So it does where waiting would be for itself, and
        where nobody computes any more.

        Args:
            task: of a caller that awaits; None: it blocks its thread.
        """
        while True:
            flight = self._flights.get(key)
            may_join = flight is not None and not is_outdated(flight)
            with _lock:
                if self._flights.get(key) is not flight:
                    continue  # another one meanwhile
                within = _flight_of_context()
                if flight is not None and flight.is_abandoned:
                    self._open.discard(flight)
                    flight.end(error=LeaderLeft())
                elif flight is not None and may_join and not _needs_caller(flight, within, task):
                    self.num_joined += 1
                    if task is None:
                        _blocked[threading.get_ident()] = flight
                    _add_need(within, flight)
                    return flight, False
                flight = self._flights[key] = Flight(since, task)
                self._open.add(flight)
                _add_need(within, flight)
                return flight, True

    def is_under_way(self, key: bytes) -> bool:
        """Whether somebody computes it."""
        flight = self._flights.get(key)
        return flight is not None and not flight.is_abandoned

    def land(self, key: bytes, flight: Flight, result: Any) -> None:
        """It is computed."""
        self._remove(key, flight)
        flight.end(result)

    def crash(self, key: bytes, flight: Flight, error: BaseException) -> None:
        """It failed, and so does everybody who waits; after `LeaderLeft` they try themselves."""
        self._remove(key, flight)
        flight.end(error=error)

    def leave(self) -> None:
        """Wake all who wait, with `LeaderLeft`; who computes goes on."""
        with _lock:
            left = list(self._open)
        for flight in left:
            flight.end(error=LeaderLeft())

    def _remove(self, key: bytes, flight: Flight) -> None:
        with _lock:
            self._open.discard(flight)
            if self._flights.get(key) is flight:
                del self._flights[key]


def wait(flight: Flight) -> Any:
    """The result of a flight that this thread has joined.

    Raises:
        LeaderLeft: there will be none.
    """
    try:
        while not wait_for_futures([flight.future], _LOOK_S).done:
            if flight.is_abandoned:
                raise LeaderLeft
        return flight.future.result()
    finally:
        _blocked.pop(threading.get_ident(), None)


async def wait_async(flight: Flight) -> Any:
    """`wait` for a task."""
    future = asyncio.wrap_future(flight.future)
    try:
        while not (await asyncio.wait([future], timeout=_LOOK_S))[0]:
            if flight.is_abandoned:
                raise LeaderLeft
        return future.result()
    finally:
        future.cancel()  # whose result nobody wants; nothing once it is done


@contextmanager
def computing(flight: Flight) -> Iterator[None]:
    """What is asked for inside is asked for by this flight."""
    token = _within.set(ref(flight))
    try:
        yield
    finally:
        with suppress(ValueError):  # a coroutine that is thrown away ends in another context
            _within.reset(token)


def _flight_of_context() -> Flight | None:
    reference = _within.get()
    flight = None if reference is None else reference()
    return None if flight is None or flight.future.done() else flight


def _add_need(within: Flight | None, needed: Flight) -> None:
    if within is not None:
        within.needs = [*(need for need in within.needs if not need.future.done()), needed]


def _needs_caller(flight: Flight, within: Flight | None, task: asyncio.Task[Any] | None) -> bool:
    """Whether `flight` cannot end before the caller goes on.

    A blocked thread stops all that runs in it; an awaiting task only itself.
    """
    thread = threading.get_ident()
    seen: set[Flight] = set()
    to_see = [flight]
    while to_see:
        each = to_see.pop()
        if each in seen or each.future.done():
            continue
        seen.add(each)
        if each is within or (
            each.thread == thread and (task is None or each.task is None or each.task is task)
        ):
            return True
        to_see.extend(each.needs)
        if each.thread in _blocked:
            to_see.append(_blocked[each.thread])
    return False


def _start_anew_in_child() -> None:
    """The threads that held the lock, and those that waited, stayed with the parent."""
    global _lock
    _lock = threading.RLock()
    _blocked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
