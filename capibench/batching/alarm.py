"""The loop's clock and the one timer that a batcher sleeps by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """Wakes its owner at the earliest of the times it was set to, and tells the time.

    Loops fire timers up to their resolution early. What this calls the time is never behind a timer
    that has fired, so that who is woken for a deadline sees it passed.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._time: Callable[[], float] = _not_started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._latest_s = -float("inf")

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on there is a time: that of `loop`."""
        self._loop = loop
        self._time = loop.time

    def now_s(self) -> float:
        """Absolute loop seconds."""
        now_s = self._time()
        if now_s > self._latest_s:
            self._latest_s = now_s
        return self._latest_s

    def check_loop(self, what: str) -> None:
        """Refuse to do `what` in another event loop: who waits there would never be woken.

        Raises:
            RuntimeError: this is not the loop that was started in.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise RuntimeError(
                f"{what}: called {'outside any' if running is None else 'in another'} event loop; "
                "expected in the one that the batcher was started in"
            )

    def reached(self, time_s: float) -> None:
        """Somebody else's timer for `time_s` has fired."""
        self._latest_s = max(self._latest_s, time_s)

    def set(self, time_s: float) -> None:
        """Ring at `time_s` (infinity: not), or before: a timer that is due earlier stays, because
        a new one for every batch would cost more than ringing once too often."""
        if self._timer is not None:
            if self._timer.when() <= time_s:
                return
            self.clear()
        if time_s != float("inf"):
            assert self._loop is not None
            self._timer = self._loop.call_at(time_s, self._fire, time_s)

    def clear(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self, time_s: float) -> None:
        self._timer = None
        self.reached(time_s)
        self._ring()


def _not_started() -> float:
    raise RuntimeError("a batcher was used before start")
