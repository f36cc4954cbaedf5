"""Single flight: who misses what somebody else is computing already waits for that result.

One registry for threads and event loops: a flight ends in a `concurrent.futures.Future`, on which a
thread blocks and which a coroutine awaits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class LeaderLeft(Exception):
    """Who computed was cancelled and has no result; whoever waits tries itself."""


class Flight:
    """One computation that is under way."""

    __slots__ = ("future", "since", "task", "thread")

    def __init__(self, since: int, task: asyncio.Task[Any] | None) -> None:
        self.since = since  # where the log of invalidations stood when it began
        self.thread = threading.get_ident()
        self.task = task
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # nobody who waits can cancel it for others


class Flights:
    """Thread-safe. Who leads a flight must end it, by `land` or `crash`."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}
        self._lock = threading.Lock()
        self.num_joined = 0

    def join(
        self,
        key: bytes,
        since: int,
        task: asyncio.Task[Any] | None,
        is_outdated: Callable[[Flight], bool],
    ) -> tuple[Flight, bool]:
        """The flight for `key`, and whether the caller leads it and computes.

        A flight that `is_outdated` (what it rests on was invalidated since) is nobody's to join;
        the caller leads a new one in its place. So it does where waiting would be for itself.

        Args:
            task: of a caller that awaits; None: it blocks its thread.
        """
        with self._lock:
            flight = self._flights.get(key)
            if (
                flight is not None
                and not _waits_for_itself(flight, task)
                and not is_outdated(flight)
            ):
                self.num_joined += 1
                return flight, False
            flight = self._flights[key] = Flight(since, task)
            return flight, True

    def is_under_way(self, key: bytes) -> bool:
        """Whether somebody computes it."""
        return key in self._flights

    def land(self, key: bytes, flight: Flight, result: Any) -> None:
        """It is computed."""
        self._remove(key, flight)
        flight.future.set_result(result)

    def crash(self, key: bytes, flight: Flight, error: BaseException) -> None:
        """It failed, and so does everybody who waits; after `LeaderLeft` they try themselves."""
        self._remove(key, flight)
        flight.future.set_exception(error)

    def _remove(self, key: bytes, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]


def _waits_for_itself(flight: Flight, task: asyncio.Task[Any] | None) -> bool:
    """A blocked thread stops all that runs in it; an awaiting task only itself."""
    if flight.thread != threading.get_ident():
        return False
    return task is None or flight.task is None or task is flight.task
