"""When a key will have been forgotten, from how often it was asked for lately and over a long time.

Every key has two exponentially decayed counts of its accesses, one that forgets within about a
turnover of the cache and one that remembers many; their weighted sum is its forecast rate. Keys
that were evicted are remembered for a while, so that one which returns does not begin anew. It is
LRFU (Lee, Choi, Kim, Noh, Min, Cho, Kim, "LRFU: a spectrum of policies that subsumes the least
recently used and least frequently used policies", IEEE Transactions on Computers 50(12), 2001,
section 2) with two decay rates instead of one, with a memory of evicted keys, and with a discount
on the first access of a key that is not remembered, because most of those never return.

A sum of two decays does not keep its order over time, as LRFU's heap needs. But the rate at which
keys are evicted hardly changes from one eviction to the next; so a key's place is the moment at
which its own rate, if nobody asks for it, falls to that going rate, and the first such moment names
the victim. It is found by Newton's method and corrected when it comes to the top of the heap.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from capibench.cache.policy import PolicyMemory

_FEW = 16  # a turnover is not counted in fewer entries than these
_COMPACT_FROM = 64
_NEWTON_STEPS = 3
_CLOSE_TURNOVERS = 0.02  # how exactly the moment needs to be known
_GOING_RATE_GAIN = 0.02  # how fast the going rate follows the rates of the evicted
_LEAST_WORTH_S = 1e-9  # what costs nothing to recompute goes first, in order of its rate


class _Key:
    __slots__ = ("at", "due", "recent", "steady", "worth")

    def __init__(self, at: int) -> None:
        self.recent = 0.0  # decayed counts, as they were at the access number `at`
        self.steady = 0.0
        self.at = at
        self.worth = 1.0  # of a hit, per byte
        self.due = 0.0  # the moment by which the heap has it


@dataclass
class Forecast:
    """O(1) on a hit: what is asked for again is due later, and is corrected when its old moment
    comes; O(log n) amortised per eviction."""

    score_by: Literal["hits", "seconds"]  # what a hit is worth: one, or the seconds it saves
    recent_half_life_turnovers: float  # a turnover: as many accesses as entries are resident
    steady_half_life_turnovers: float
    recent_weight: float  # of the short count; the long one has the rest
    first_count: float  # what a key's first known access counts, of 1: most never return
    ghosts_per_resident: float

    _now: int = field(init=False, repr=False, compare=False)  # accesses so far
    _known: dict[bytes, _Key] = field(init=False, repr=False, compare=False)  # residents
    _ghosts: OrderedDict[bytes, _Key] = field(init=False, repr=False, compare=False)
    _heap: list[tuple[float, bytes]] = field(init=False, repr=False, compare=False)
    _going_rate: float | None = field(init=False, repr=False, compare=False)  # its log2
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("recent_half_life_turnovers", "steady_half_life_turnovers"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected above 0")
        if self.steady_half_life_turnovers < self.recent_half_life_turnovers:
            raise ValueError(
                f"steady_half_life_turnovers: got {self.steady_half_life_turnovers}; "
                f"expected at least recent_half_life_turnovers {self.recent_half_life_turnovers}"
            )
        if not 0 <= self.recent_weight <= 1:
            raise ValueError(f"recent_weight: got {self.recent_weight}; expected 0 to 1")
        if not 0 < self.first_count <= 1:
            raise ValueError(f"first_count: got {self.first_count}; expected above 0, at most 1")
        if not 0 <= self.ghosts_per_resident < math.inf:
            raise ValueError(
                f"ghosts_per_resident: got {self.ghosts_per_resident}; expected at least 0"
            )
        self._now = 0
        self._known, self._ghosts, self._heap = {}, OrderedDict(), []
        self._going_rate = None
        self._leaving = None

    @property
    def memory(self) -> PolicyMemory:
        """The rates, in places on the heap, and those of ghosts with their keys."""
        return PolicyMemory(160 + math.ceil(200 * self.ghosts_per_resident))

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        state = self._ghosts.pop(key, None)
        if state is None:
            state = _Key(self._now)
            self._count(state, self.first_count)
        else:
            self._count(state, 1.0)
        worth = max(cost_s, _LEAST_WORTH_S) if self.score_by == "seconds" else 1.0
        state.worth = worth / max(size, 1)
        self._known[key] = state
        state.due = self._due(state)
        heapq.heappush(self._heap, (state.due, key))
        if len(self._heap) > 2 * len(self._known) + _COMPACT_FROM:
            self._heap = [(known.due, key) for key, known in self._known.items()]
            heapq.heapify(self._heap)

    def on_hit(self, key: bytes, now: float) -> None:
        self._count(self._known[key], 1.0)

    def on_remove(self, key: bytes) -> None:
        state = self._known.pop(key)
        if key == self._leaving:
            self._ghosts[key] = state
            self._leaving = None
        ghosts, most = self._ghosts, self.ghosts_per_resident * len(self._known)
        while len(ghosts) > most:
            ghosts.popitem(last=False)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        heap, known = self._heap, self._known
        close = _CLOSE_TURNOVERS * len(known)
        while True:
            due, key = heap[0]
            state = known.get(key)
            if state is None or state.due != due:  # it left, and may have come back
                heapq.heappop(heap)
                continue
            corrected = self._due(state)
            if corrected > due + close:
                state.due = corrected
                heapq.heapreplace(heap, (corrected, key))
                continue
            assert self._going_rate is not None
            self._going_rate += _GOING_RATE_GAIN * (self._log_rate(state) - self._going_rate)
            self._leaving = key
            return key

    def due(self, key: bytes) -> float:
        """When the resident `key` will have been forgotten, counted in accesses."""
        return self._due(self._known[key])

    def _count(self, state: _Key, count: float) -> None:
        """One more access now, which counts so much."""
        self._now += 1
        turnovers = (self._now - state.at) / max(len(self._known), _FEW)
        state.recent = count + state.recent * 0.5 ** (turnovers / self.recent_half_life_turnovers)
        state.steady = count + state.steady * 0.5 ** (turnovers / self.steady_half_life_turnovers)
        state.at = self._now

    def _log_rate(self, state: _Key) -> float:
        """log2 of the forecast rate now, times what a hit is worth."""
        turnovers = (self._now - state.at) / max(len(self._known), _FEW)
        recent = state.recent * 0.5 ** (turnovers / self.recent_half_life_turnovers)
        steady = state.steady * 0.5 ** (turnovers / self.steady_half_life_turnovers)
        rate = self.recent_weight * recent + (1.0 - self.recent_weight) * steady
        return math.log2(max(state.worth * rate, sys.float_info.min))

    def _due(self, state: _Key) -> float:
        """The access number at which the rate of `state` falls to the going rate."""
        turnover = max(len(self._known), _FEW)
        recent_decay = 1.0 / (self.recent_half_life_turnovers * turnover)
        steady_decay = 1.0 / (self.steady_half_life_turnovers * turnover)
        recent = state.worth * self.recent_weight * state.recent
        steady = state.worth * (1.0 - self.recent_weight) * state.steady
        if self._going_rate is None:  # nothing was evicted: as of one access, a turnover ago
            self._going_rate = math.log2(recent + steady) - turnover * recent_decay
        rate, recent_then, steady_then = recent + steady, recent, steady
        surplus = math.log2(rate) - self._going_rate
        if surplus <= 0:  # past already; before, it fell no faster than this
            return state.at + surplus / recent_decay
        waited, close = 0.0, _CLOSE_TURNOVERS * turnover
        for _ in range(_NEWTON_STEPS):
            # log2 of the rate is convex: a step never goes past the moment.
            step = surplus * rate / (recent_then * recent_decay + steady_then * steady_decay)
            waited += step
            if step < close:
                break
            recent_then = recent * 2.0 ** (-waited * recent_decay)
            steady_then = steady * 2.0 ** (-waited * steady_decay)
            rate = recent_then + steady_then
            surplus = math.log2(rate) - self._going_rate
        return state.at + waited
