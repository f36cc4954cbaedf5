"""What happens to the RAM tier of a cache that prefetches, queued by look-ups at the cost of an
append, and worked off by `tend` when nobody waits.

Learning, choosing and reading all happen in `tend`, one thread at a time. Events are in the order
in which they were noted; between threads that is the order of what happened up to a look-up's last
step, so that a use may be counted as none when the entry leaves in the same moment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.prefetching.prefetch import Followers

_MOST_EVENTS = 65_536  # the oldest are lost where nobody tends for so long


class Accessed(NamedTuple):
    """A look-up; where RAM did not have it, before anything else is done about it."""

    kind: CacheType
    key: bytes
    found_s: float | None  # what finding it in RAM took; None: it was not there


class Evicted(NamedTuple):
    """Had to leave RAM for another entry."""

    key: bytes
    for_prefetch: bool


class Left(NamedTuple):
    """Was invalidated or replaced; None: everything was."""

    key: bytes | None


class Brought(NamedTuple):
    """Was prefetched."""

    key: bytes
    read_s: float


Event = Accessed | Evicted | Left | Brought


class Promotions:
    """Thread-safe."""

    def __init__(self, choice: Followers) -> None:
        self._most_per_turn = choice.most_per_turn
        self._prefetcher = choice.prefetcher()
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.note = self._events.append
        self._turn = threading.Lock()  # of the one thread that tends
        self._lock = threading.Lock()
        self._is_closed = False
        self._tending_s = 0.0
        self._reading_s = 0.0

    def tend(
        self, promote: Callable[[bytes], float | None], is_in_l1: Callable[[bytes], bool]
    ) -> int:
        """Prefetch a few; how many. Nothing while another thread does.

        Args:
            promote: bring a key into RAM and note so; the seconds of reading it, or None where it
                was not to be brought.
        """
        if not self._turn.acquire(blocking=False):
            return 0
        try:
            with self._lock:
                return self._tend(promote, is_in_l1)
        finally:
            self._turn.release()

    def stats(self) -> dict[str, Any]:
        """All figures as JSON; `precision` is None where nothing was settled."""
        with self._lock:
            self._catch_up()
            figures = self._prefetcher
            settled = figures.num_used + figures.num_unused
            return {
                "prefetched": figures.num_prefetched,
                "used": figures.num_used,  # asked for, and still in RAM
                "unused": figures.num_unused,  # left RAM before
                "open": figures.num_open,  # in RAM, and not asked for yet
                "precision": figures.num_used / settled if settled else None,
                "evicted_for": figures.num_evicting,
                "harmed": figures.num_harmed,
                "saved_s": figures.saved_s,
                "reading_s": self._reading_s,
                "tending_s": self._tending_s,  # with reading, learning and choosing
                "mode": figures.switch.mode,
                "switched": [switched._asdict() for switched in figures.switch.switched],
            }

    def close(self) -> None:
        """Prefetch nothing from now on."""
        self._is_closed = True

    def _tend(
        self, promote: Callable[[bytes], float | None], is_in_l1: Callable[[bytes], bool]
    ) -> int:
        begin_s = perf_counter()
        self._catch_up()
        oldest = self._prefetcher.oldest_open()
        if oldest is not None and not is_in_l1(oldest):
            self._prefetcher.left(oldest)  # it expired
        num_promoted = 0
        while num_promoted < self._most_per_turn and not self._is_closed:
            key = self._prefetcher.wanted()
            if key is None:
                break
            read_s = promote(key)
            if read_s is not None:
                self._reading_s += read_s
                num_promoted += 1
                self._catch_up()
        self._tending_s += perf_counter() - begin_s
        return num_promoted

    def _catch_up(self) -> None:
        figures, events = self._prefetcher, self._events
        while events:
            event = events.popleft()
            if type(event) is Accessed:
                figures.accessed(*event)
            elif type(event) is Evicted:
                figures.evicted(*event)
            elif type(event) is Brought:
                figures.brought(*event)
            elif event.key is None:
                figures.cleared()
            else:
                figures.left(event.key)
