"""Which keys to bring from the SSD tier back into RAM before they are asked for, and what came of
those that were.

Pure: it is told what happens, in order, and moves nothing. Whoever moves asks `wanted`, and tells
`brought`, `evicted` and `left`.

What a prefetch costs others is counted against the tier as it would be without prefetches. Were it
LRU with entries of one size, it would hold, instead of the n prefetched entries that nobody has
used yet, the last n entries of its own that were evicted; so a look-up that misses one of these is
a hit that prefetching took (`harmed`), and a use of a prefetched key that is among them is no gain
and counts in both. Under other policies and mixed sizes that is an estimate.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from capibench.cache.keys import CacheType
from capibench.cache.prefetching.prefetch_switch import PrefetchSwitch
from capibench.cache.prefetching.successors import Successors


class Open(NamedTuple):
    """A prefetched key that nobody has asked for yet."""

    trial: int  # under which it was made
    read_s: float  # what reading it from the SSD took


class Prefetcher:
    """Not thread-safe."""

    def __init__(self, forecast: Successors, most_wanted: int, switch: PrefetchSwitch) -> None:
        """`most_wanted`: keys that wait to be brought, the latest expected."""
        self.switch = switch
        self._forecast = forecast
        self._wanted: deque[bytes] = deque(maxlen=most_wanted)
        self._open: dict[bytes, Open] = {}
        self._displaced: OrderedDict[bytes, None] = OrderedDict()
        self.num_prefetched = 0
        self.num_used = 0
        self.num_unused = 0  # left RAM without
        self.num_evicting = 0  # entries that had to leave for prefetched ones
        self.num_harmed = 0
        self.saved_s = 0.0  # reading the used ones from the SSD, less looking them up in RAM

    @property
    def num_open(self) -> int:
        """Prefetched, in RAM, and neither used nor gone."""
        return len(self._open)

    def accessed(self, kind: CacheType, key: bytes, found_s: float | None) -> None:
        """Somebody asked for `key`, and found it in RAM in so many seconds (None: not there)."""
        self.switch.accessed()
        opened = self._open.get(key)
        if key in self._displaced:
            del self._displaced[key]
            if opened is not None or found_s is None:
                self.num_harmed += 1
                self.switch.harmed()
        if opened is not None:
            self._settle(key, opened, used=found_s is not None)
            if found_s is not None:
                self.saved_s += opened.read_s - found_s
        self._forecast.accessed(kind, key)
        if self.switch.may_prefetch:
            self._wanted.extend(reversed(self._forecast.expected(key)))

    def wanted(self) -> bytes | None:
        """The key to bring next, where it lies on the SSD alone; None: nothing is wanted."""
        if not self._wanted or not self.switch.may_prefetch:
            self._wanted.clear()
            return None
        return self._wanted.pop()

    def brought(self, key: bytes, read_s: float) -> None:
        """`key` is in RAM now, before it was asked for; what had to leave for it is told next."""
        self.num_prefetched += 1
        self.switch.made()
        self._open[key] = Open(self.switch.trial, read_s)

    def evicted(self, key: bytes, for_prefetch: bool) -> None:
        """`key` had to leave RAM for another entry."""
        self.num_evicting += for_prefetch
        opened = self._open.get(key)
        if opened is not None:
            self._settle(key, opened, used=False)
            return
        self._displaced[key] = None
        self._displaced.move_to_end(key)
        self._forget_displaced()

    def left(self, key: bytes) -> None:
        """`key` was invalidated, replaced, or found to be gone."""
        self._displaced.pop(key, None)
        opened = self._open.get(key)
        if opened is not None:
            self._settle(key, opened, used=False)

    def cleared(self) -> None:
        """Everything was invalidated."""
        self._displaced.clear()
        self._wanted.clear()
        for key, opened in list(self._open.items()):
            self._settle(key, opened, used=False)

    def oldest_open(self) -> bytes | None:
        """To look whether it is still there: what expires tells nobody."""
        return next(iter(self._open), None)

    def _settle(self, key: bytes, opened: Open, *, used: bool) -> None:
        del self._open[key]
        self.num_used += used
        self.num_unused += not used
        self.switch.settled(opened.trial, used)
        self._forget_displaced()

    def _forget_displaced(self) -> None:
        while len(self._displaced) > len(self._open):
            self._displaced.popitem(last=False)
