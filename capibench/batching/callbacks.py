"""The callers' own code, which runs when their requests have ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from capibench.batching.outcome import BatchOutcome

R = TypeVar("R")

_log = logging.getLogger(__name__)


class Callbacks(Generic[R]):
    """Each runs in a task of its own, so that none holds up the batcher or another."""

    def __init__(self) -> None:
        # Each callback and the future of its last moment that others have to wait for.
        self._running: dict[asyncio.Task[None], asyncio.Future[None]] = {}

    def begin(
        self, callback: Callable[[BatchOutcome[R]], object], outcome: BatchOutcome[R]
    ) -> None:
        """Call it soon. An error in it is logged."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(_call(callback, outcome))
        self._running[task] = loop.create_future()
        task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Until all have ended.

        A callback may wait here itself: not for its own end, nor for others who wait here.
        """
        task = asyncio.current_task()
        mine = None if task is None else self._running.get(task)
        if mine is None:
            while self._running:
                await asyncio.wait(self._running)
            return
        if not mine.done():
            mine.set_result(None)
        while others := [last for last in self._running.values() if not last.done()]:
            await asyncio.wait(others)

    def _ended(self, task: asyncio.Task[None]) -> None:
        last = self._running.pop(task)
        if not last.done():
            last.set_result(None)


async def _call(callback: Callable[[BatchOutcome[R]], object], outcome: BatchOutcome[R]) -> None:
    try:
        returned = callback(outcome)
        if inspect.isawaitable(returned):
            await returned
    except Exception:  # noqa: BLE001 - the caller's code must not stop the batcher
        _log.exception("the callback of request %s failed", outcome.request_id)
