"""A thread that tends a cache after its look-ups, for programs that have no idle moments to lend.

It starts with the first look-up and sleeps while there are none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger(__name__)


class Tender:
    """Thread-safe. In a child made by `fork` it does nothing: the thread stayed with the parent."""

    def __init__(self, tend: Callable[[], int]) -> None:
        """`tend`: do a little of what there is to do; 0 when nothing is left."""
        self._tend = tend
        self._bell = threading.Lock()  # released: rung. Nothing more than a lock survives a fork
        self._bell.acquire()
        self._is_called = False  # and has not begun to tend since
        self._starting = threading.Lock()
        self._is_started = False
        self._is_shut_down = False
        self._has_failed = False

    def call(self) -> None:
        """There may be something to do."""
        if self._is_called:
            return
        self._is_called = True
        if not self._is_started:
            self._start()
        self._ring()

    def shutdown(self) -> None:
        """End after what is being done; waits for nothing."""
        self._is_shut_down = True
        self._ring()

    def _ring(self) -> None:
        with suppress(RuntimeError):  # another thread has just rung
            self._bell.release()

    def _start(self) -> None:
        with self._starting:
            if self._is_started:
                return
            try:
                threading.Thread(target=self._work, name="cache-tender", daemon=True).start()
            except RuntimeError:  # no more threads: the next look-up tries again
                self._is_called = False
            else:
                self._is_started = True

    def _work(self) -> None:
        while True:
            self._bell.acquire()
            self._is_called = False  # before tending: what comes from now on calls again
            try:
                while not self._is_shut_down and self._tend():
                    pass
            except Exception:  # noqa: BLE001  a clock's, say: nobody asked, so nobody fails for it
                if not self._has_failed:
                    _log.exception("prefetching failed, and goes on with the next look-up")
                self._has_failed = True
            if self._is_shut_down:
                return
