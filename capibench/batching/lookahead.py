"""A good offline schedule for requests with different objectives, where the best is out of reach.

A beam search (Lowerre 1976; as a heuristic of batch scheduling it is common). It knows all arrivals
and keeps, for every number of served requests, the few unfinished schedules that are free first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capibench.batching.offline import GRACE_S, Array, PlannedBatch

_MAX_WAITS = 4  # times a batch may be put off until more requests have come


@dataclass(frozen=True, slots=True)
class _Line:
    """Requests with the same objective, in order of arrival."""

    release_s: list[float]
    due_s: list[float]
    requests: list[int]


@dataclass(frozen=True, slots=True)
class _Plan:
    """An unfinished schedule; `fronts` has, per line, how many are served or given up."""

    free_s: float
    fronts: tuple[int, ...]
    last: PlannedBatch | None
    before: _Plan | None


def lookahead_schedule(
    release_s: Array, due_s: Array, service_s: Sequence[float], width: int
) -> list[PlannedBatch]:
    """Batches of one worker that all end in time; nothing says that there are no better ones.

    Given when a batch starts and its size, it holds those who came, can end in time and are due
    first: to change places with one who is due later never hurts. Requests of one line are thus
    taken in order of arrival, and a front per line describes what is left. What is heuristic: a
    batch waits only for as many as it lacks, and of all plans that served equally many only the
    `width` which are free first go on.
    """
    lines = _lines(release_s, due_s)
    arrivals = np.sort(release_s).tolist()
    beams = [_Beam(width) for _ in range(len(arrivals) + 1)]  # by number of served requests
    best = _Plan(float("-inf"), (0,) * len(lines), None, None)
    beams[0].add(best)
    for served, beam in enumerate(beams):
        for plan in beam.plans:
            best = plan  # of the highest number served so far
            for size, second in enumerate(service_s[: len(arrivals) - served], start=1):
                start = _start(plan, size, second, lines, arrivals)
                if start is not None and beams[served + size].has_room(start[0] + second):
                    batched = _batched(plan, size, start[0], start[0] + second, lines, start[1])
                    beams[served + size].add(batched)
        beam.plans = []
    batches = []
    while best.before is not None:
        assert best.last is not None
        batches.append(best.last)
        best = best.before
    return batches[::-1]


def _lines(release_s: Array, due_s: Array) -> list[_Line]:
    objective_s = np.round(due_s - release_s, 6)
    lines = []
    for objective in np.unique(objective_s).tolist():
        inside = np.flatnonzero(objective_s == objective)
        inside = inside[np.argsort(release_s[inside], kind="stable")]
        # Rounding must not put a deadline before that of an earlier arrival: bisection needs order.
        due = np.minimum.accumulate(due_s[inside][::-1])[::-1]
        lines.append(_Line(release_s[inside].tolist(), due.tolist(), inside.tolist()))
    return lines


class _Beam:
    """Of the plans that served equally many, the `width` which are free first; of those with the
    same fronts only one."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.plans: list[_Plan] = []  # by the time when they are free

    def has_room(self, free_s: float) -> bool:
        """Whether a plan that is free then may be one of them."""
        return len(self.plans) < self._width or free_s < self.plans[-1].free_s

    def add(self, plan: _Plan) -> None:
        """Keep `plan`, if it is one of them."""
        for at, other in enumerate(self.plans):
            if other.fronts == plan.fronts:
                if other.free_s <= plan.free_s:
                    return
                del self.plans[at]
                break
        insort(self.plans, plan, key=lambda one: one.free_s)
        del self.plans[self._width :]


def _start(
    plan: _Plan, size: int, second: float, lines: list[_Line], arrivals: list[float]
) -> tuple[float, list[tuple[int, int]]] | None:
    """When one more batch of `size` starts after `plan`, as soon as that many are there, and who
    is, by line; None: it never works."""
    start_s = plan.free_s if plan.free_s != float("-inf") else arrivals[0]
    for _ in range(_MAX_WAITS):
        spans = []  # per line: first and behind the last who is there and can end in time
        for line, front in zip(lines, plan.fronts, strict=True):
            low = bisect_left(line.due_s, start_s + second - GRACE_S, lo=front)
            high = bisect_right(line.release_s, start_s, lo=front)
            spans.append((low, max(low, high)))
        lacking = size - sum(high - low for low, high in spans)
        if lacking <= 0:
            return start_s, spans
        next_arrival = bisect_right(arrivals, start_s) + lacking - 1
        if next_arrival >= len(arrivals):
            return None
        start_s = arrivals[next_arrival]
    return None


def _batched(
    plan: _Plan,
    size: int,
    start_s: float,
    end_s: float,
    lines: list[_Line],
    spans: list[tuple[int, int]],
) -> _Plan:
    fronts = list(plan.fronts)
    heads = [
        (lines[number].due_s[low], number, low)
        for number, (low, high) in enumerate(spans)
        if low < high
    ]
    heapq.heapify(heads)
    members = []
    for _ in range(size):
        _, number, at = heads[0]
        line = lines[number]
        members.append(line.requests[at])
        fronts[number] = at + 1
        if at + 1 < spans[number][1]:
            heapq.heapreplace(heads, (line.due_s[at + 1], number, at + 1))
        else:
            heapq.heappop(heads)
    return _Plan(end_s, tuple(fronts), PlannedBatch(start_s, end_s, tuple(members)), plan)
