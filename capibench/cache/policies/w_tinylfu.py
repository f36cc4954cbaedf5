"""Let an entry stay only if it is asked for more often than the one that would leave for it.

W-TinyLFU (Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy", ACM
Transactions on Storage 13(4), 2017, section 4): new entries enter a small window, an LRU list. What
leaves the window is compared with the next victim of the main space, a segmented LRU of probation
and protected entries, and the one with the lower frequency (`FrequencySketch`) is evicted. A large
window makes it LRU; `window_share` is what one tunes.

Departures: ties evict the newcomer; sizes are bytes, frequencies are compared whatever the sizes;
an entry larger than the window is itself compared, on its arrival.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.cache.policy import PolicyMemory
from capibench.cache.policy_parts.frequency_sketch import FrequencySketch


@dataclass
class WTinyLfu:
    """Every operation is O(1)."""

    memory: ClassVar[PolicyMemory] = PolicyMemory(80)  # the sketch

    window_share: float  # of the tier's bytes
    protected_share: float  # of the main space
    sample_factor: int  # accesses per resident entry after which all frequencies are halved

    _sketch: FrequencySketch = field(init=False, repr=False, compare=False)
    _window_capacity: int = field(init=False, repr=False, compare=False)
    _protected_capacity: int = field(init=False, repr=False, compare=False)
    _in_window: int = field(init=False, repr=False, compare=False)
    _in_protected: int = field(init=False, repr=False, compare=False)
    _window: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)  # key → size
    _probation: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)
    _protected: OrderedDict[bytes, int] = field(init=False, repr=False, compare=False)
    _incoming: bytes | None = field(init=False, repr=False, compare=False)
    _incoming_size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("window_share", "protected_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected 0 to 1")
        if self.sample_factor < 1:
            raise ValueError(f"sample_factor: got {self.sample_factor}; expected at least 1")
        self._sketch = FrequencySketch(self.sample_factor)
        self._window_capacity = self._protected_capacity = 0
        self._in_window = self._in_protected = 0
        self._window, self._probation, self._protected = OrderedDict(), OrderedDict(), OrderedDict()
        self._incoming, self._incoming_size = None, 0

    def open(self, capacity_bytes: int) -> None:
        self._window_capacity = int(capacity_bytes * self.window_share)
        self._protected_capacity = int(
            (capacity_bytes - self._window_capacity) * self.protected_share
        )

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        if key != self._incoming:
            self._sketch.add(key)
        self._incoming = None
        window, probation = self._window, self._probation
        self._sketch.reserve(len(window) + len(probation) + len(self._protected) + 1)
        if size > self._window_capacity:
            probation[key] = size
            return
        window[key] = size
        self._in_window += size
        while self._in_window > self._window_capacity:
            moved, moved_size = window.popitem(last=False)
            self._in_window -= moved_size
            probation[moved] = moved_size

    def on_hit(self, key: bytes, now: float) -> None:
        self._sketch.add(key)
        if key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._window:
            self._window.move_to_end(key)
        else:
            size = self._probation.pop(key)
            self._protected[key] = size
            self._in_protected += size
            while self._in_protected > self._protected_capacity:
                moved, moved_size = self._protected.popitem(last=False)
                self._in_protected -= moved_size
                self._probation[moved] = moved_size

    def on_remove(self, key: bytes) -> None:
        size = self._window.pop(key, None)
        if size is not None:
            self._in_window -= size
            return
        size = self._protected.pop(key, None)
        if size is not None:
            self._in_protected -= size
            return
        del self._probation[key]

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        self._incoming, self._incoming_size = key, size
        self._sketch.add(key)
        if size <= self._window_capacity:
            return True
        main = self._main_victim()
        return main is None or self._sketch.estimate(key) > self._sketch.estimate(main)

    def victim(self, now: float) -> bytes:
        window, main = self._window, self._main_victim()
        overflows = self._in_window + self._incoming_size > self._window_capacity
        is_compared = self._incoming_size > self._window_capacity  # on its arrival
        if window and (main is None or (overflows and not is_compared)):
            candidate = next(iter(window))
            estimate = self._sketch.estimate
            if main is None or estimate(candidate) <= estimate(main):
                return candidate
            size = window.pop(candidate)
            self._in_window -= size
            self._probation[candidate] = size
        assert main is not None, "victim() of an empty tier"
        return main

    def _main_victim(self) -> bytes | None:
        queue = self._probation or self._protected
        return next(iter(queue)) if queue else None
