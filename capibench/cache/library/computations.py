"""A value from the cache, or computed: at most once at a time, and never kept when what it rests on
was invalidated, or another value set, while it was computed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.library.flights import Flight, Flights, LeaderLeft, computing, wait, wait_async
from capibench.cache.tiers.envelope import decode_trusted, is_rounded
from capibench.cache.tiers.l1 import Lookup
from capibench.cache.tiers.tiered import TieredCache

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where an entry is."""

    kind: CacheType
    key: bytes
    name: str  # what globs match


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, beside how to compute it."""

    address: Address
    ttl_s: float | None  # None: that of the type
    tags_of: Callable[[Any], Sequence[str]]


class Computations:
    """Thread-safe, from synchronous and asynchronous code."""

    def __init__(self, tiers: TieredCache, now: Callable[[], float], serves_stale: bool) -> None:
        self._tiers = tiers
        self._now = now
        self._serves_stale = serves_stale
        self._flights = Flights()
        self._tasks: set[asyncio.Task[Any]] = set()  # that compute stale values anew
        self._why_closed: str | None = None
        self.num_uncacheable = 0

    @property
    def num_joined(self) -> int:
        """Callers that waited for somebody else's computation."""
        return self._flights.num_joined

    def get_or_compute(self, wanted: Wanted, compute: Callable[[], Any]) -> Any:
        """The value, kept or computed; blocks the thread."""
        while True:
            found = self._find(wanted.address)
            if found.is_hit and (not found.is_stale or self._is_under_way(wanted)):
                return found.value
            flight, leads = self._join(wanted.address, None)
            if found.is_hit:
                if leads:
                    self._revalidate_in_thread(wanted, flight, compute)
                return found.value
            if leads:
                return self._lead(wanted, flight, compute)
            try:
                return _own_copy(wait(flight))
            except LeaderLeft:
                self.check_open()

    async def get_or_compute_async(
        self, wanted: Wanted, compute: Callable[[], Awaitable[Any]]
    ) -> Any:
        """The value, kept or computed."""
        while True:
            found = self._find(wanted.address)
            if found.is_hit and (not found.is_stale or self._is_under_way(wanted)):
                return found.value
            flight, leads = self._join(wanted.address, asyncio.current_task())
            if found.is_hit:
                if leads:
                    self._revalidate_in_task(wanted, flight, compute)
                return found.value
            if leads:
                return await self._lead_async(wanted, flight, compute)
            try:
                return _own_copy(await wait_async(flight))
            except LeaderLeft:
                self.check_open()

    def shutdown(self) -> None:
        """Keep nothing from now on; background tasks are cancelled, who waits is told, and nothing
        is waited for."""
        self._why_closed = "the cache was shut down; make a new one"
        for task in list(self._tasks):
            with suppress(RuntimeError):  # its loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)
        self._flights.leave()

    def leave_to_parent(self) -> None:
        """This is a child made by `fork`: keep nothing, touch nothing."""
        self._why_closed = (
            "the cache belongs to the process that made it, and a child made by fork cannot use "
            "it; make a new one there, with a folder of its own"
        )

    def check_open(self) -> None:
        """
        Raises:
            RuntimeError: nothing can be asked for any more.
        """
        if self._why_closed is not None:
            raise RuntimeError(self._why_closed)

    def _find(self, address: Address) -> Lookup:
        kind, key, _ = address
        return self._tiers.lookup(kind, key, self._now(), allow_stale=self._serves_stale)

    def _is_under_way(self, wanted: Wanted) -> bool:
        return self._flights.is_under_way(wanted.address.key)

    def _join(self, address: Address, task: asyncio.Task[Any] | None) -> tuple[Flight, bool]:
        def is_outdated(flight: Flight) -> bool:
            return self._tiers.is_outdated(flight.since, address.key, address.name)

        return self._flights.join(address.key, self._tiers.position(), task, is_outdated)

    def _lead(self, wanted: Wanted, flight: Flight, compute: Callable[[], Any]) -> Any:
        try:
            found, value = self._look_again(wanted, flight)
            if not found:
                with self._computing(wanted, flight):
                    begin_s = perf_counter()
                    value = compute()
                    if inspect.iscoroutine(value):
                        value.close()
                        raise TypeError(
                            "compute: got a coroutine function; expected one that returns the "
                            "value (or await get_or_compute_async)"
                        )
                    value = self._store(wanted, flight, value, perf_counter() - begin_s)
        except StopIteration as error:  # which no future can hold
            failed = RuntimeError("compute, or what reads the tags off, raised StopIteration")
            self._crash(wanted, flight, failed)
            raise failed from error
        except BaseException as error:
            self._crash(wanted, flight, error)
            raise
        return value

    async def _lead_async(
        self, wanted: Wanted, flight: Flight, compute: Callable[[], Awaitable[Any]]
    ) -> Any:
        try:
            found, value = self._look_again(wanted, flight)
            if not found:
                with self._computing(wanted, flight):
                    begin_s = perf_counter()
                    awaited = compute()
                    if not inspect.isawaitable(awaited):
                        raise TypeError(
                            f"compute: got a function that returns {type(awaited).__name__}; "
                            "expected a coroutine function (or call get_or_compute)"
                        )
                    value = await awaited
                    value = self._store(wanted, flight, value, perf_counter() - begin_s)
        except StopIteration as error:  # which no future can hold
            failed = RuntimeError("compute, or what reads the tags off, raised StopIteration")
            self._crash(wanted, flight, failed)
            raise failed from error
        except BaseException as error:
            self._crash(wanted, flight, error)
            raise
        return value

    @contextmanager
    def _computing(self, wanted: Wanted, flight: Flight) -> Iterator[None]:
        key = wanted.address.key
        self._tiers.begin(key)
        try:
            with computing(flight):
                yield
        finally:
            if self._why_closed is None:  # the lock may be one that nobody will free
                self._tiers.end(key)

    def _look_again(self, wanted: Wanted, flight: Flight) -> tuple[bool, Any]:
        """Whether somebody stored it between this one's miss and its turn to compute."""
        record = self._tiers.reread(wanted.address.key, self._now())
        if record is None:
            return False, None
        self._flights.land(wanted.address.key, flight, (record, None))
        return True, decode_trusted(record)

    def _store(self, wanted: Wanted, flight: Flight, value: Any, cost_s: float) -> Any:
        """Keep the value if it may be kept; the value as everybody gets it."""
        kind, key, name = wanted.address
        tags = tuple(wanted.tags_of(value))
        record = None
        if self._why_closed is None:
            try:
                record = self._tiers.put(
                    kind,
                    key,
                    value,
                    cost_s,
                    self._now(),
                    ttl_s=wanted.ttl_s,
                    name=name,
                    tags=tags,
                    since=flight.since,
                )
            except TypeError as error:
                self.num_uncacheable += 1
                if self.num_uncacheable == 1:
                    _log.warning("a computed value is not kept: %s", error)
        self._flights.land(key, flight, (record, value))
        return decode_trusted(record) if record is not None and is_rounded(record) else value

    def _crash(self, wanted: Wanted, flight: Flight, error: BaseException) -> None:
        """An error is everybody's; who was cancelled or interrupted leaves it to the next."""
        is_cancelled = not isinstance(error, Exception) or isinstance(error, CancelledError)
        left = LeaderLeft() if is_cancelled else error
        self._flights.crash(wanted.address.key, flight, left)

    def _revalidate_in_thread(
        self, wanted: Wanted, flight: Flight, compute: Callable[[], Any]
    ) -> None:
        def work() -> None:
            flight.thread = threading.get_ident()
            try:
                self._lead(wanted, flight, compute)
            except Exception:  # noqa: BLE001 - nobody waits: the stale value goes on being served
                _log.exception("a stale value could not be computed anew")

        try:
            threading.Thread(target=work, daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._crash(wanted, flight, error)

    def _revalidate_in_task(
        self, wanted: Wanted, flight: Flight, compute: Callable[[], Awaitable[Any]]
    ) -> None:
        def ended(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not flight.future.done():  # cancelled before it began
                self._crash(wanted, flight, asyncio.CancelledError())
            elif not task.cancelled() and (error := task.exception()) is not None:
                _log.error("a stale value could not be computed anew", exc_info=error)

        task = asyncio.get_running_loop().create_task(self._lead_async(wanted, flight, compute))
        flight.task = task
        self._tasks.add(task)
        task.add_done_callback(ended)


def _own_copy(result: tuple[bytes | None, Any]) -> Any:
    """Of a flight's result; the very object where it could not be encoded."""
    record, value = result
    return value if record is None else decode_trusted(record)
