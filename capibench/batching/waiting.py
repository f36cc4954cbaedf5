"""The queue of one batcher, kept so that no decision has to look at every waiting item.

Pure bookkeeping, no clock and no event loop. Costs with n waiting items, k of them leaving: adding
is O(1) for items of like patience (else the O(log n) of a heap); taking k out of the middle, the
expired ones too, is O(k log n + n) for all together, where the n are pointers that move up, and
O(k) at the front; the front of the line is O(k log n), the earliest deadline and bound are
amortised O(log n). What is ordered by anything but arrival may name tickets that have
left: they are dropped when they come to the front, or when they are more than those that wait.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

from capibench.batching.strategy import WaitingItem

_INFINITY = float("inf")
_NEVER = (_INFINITY, -1)
_FEW = 64  # times that are not worth looking through, positions that are deleted one by one

Entry = TypeVar("Entry", int, WaitingItem)


class WaitingQueue:
    """Waiting items in arrival order; each is known by the ticket that it got on arrival."""

    def __init__(self, items: Iterable[WaitingItem] = ()) -> None:
        self._items: list[WaitingItem] = []  # arrival order
        self._tickets: list[int] = []  # same order, ascending
        self._classes: dict[int, deque[int]] = {}  # priority → tickets, ascending, some gone
        self._num_in_classes = 0  # those that are gone included
        self._waiting: set[int] = set()  # the same tickets
        self._next_ticket = 0
        self._bounds = _Times(self._waiting)
        self._deadlines = _Times(self._waiting)
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> WaitingItem:
        return self._items[index]

    def __iter__(self) -> Iterator[WaitingItem]:
        return iter(self._items)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._waiting

    def first(self, count: int) -> Sequence[int]:
        """Indices of at most `count` items: by priority, then by arrival."""
        if len(self._classes) == 1:
            return range(min(count, len(self._items)))
        tickets, waiting = self._tickets, self._waiting
        indices: list[int] = []
        for priority in sorted(self._classes):
            line = self._classes[priority]
            while line and line[0] not in waiting:
                line.popleft()
                self._num_in_classes -= 1
            if not line:
                del self._classes[priority]
            at = 0
            for ticket in line:
                if ticket in waiting:
                    at = bisect_left(tickets, ticket, at)
                    indices.append(at)
                    if len(indices) == count:
                        return indices
        return indices

    @property
    def earliest_bound_s(self) -> float:
        """When the first item has waited its own `max_wait_s`."""
        return self._bounds.earliest()[0]

    @property
    def earliest_deadline_s(self) -> float:
        """The first deadline of a waiting item."""
        return self._deadlines.earliest()[0]

    def add(self, item: WaitingItem) -> int:
        """Append `item`, which did not arrive before any that waits, and return its ticket."""
        ticket = self._next_ticket
        self._next_ticket = ticket + 1
        self._items.append(item)
        self._tickets.append(ticket)
        self._waiting.add(ticket)
        priority, _, enqueued_s, max_wait_s, deadline_s = item
        line = self._classes.get(priority)
        if line is None:
            line = self._classes[priority] = deque()
        line.append(ticket)
        self._num_in_classes += 1
        if max_wait_s != _INFINITY:
            self._bounds.add(enqueued_s + max_wait_s, ticket)
        if deadline_s != _INFINITY:
            self._deadlines.add(deadline_s, ticket)
        return ticket

    def remove(self, ticket: int) -> None:
        """Take one item out of the line."""
        self._take([bisect_left(self._tickets, ticket)], [ticket])

    def take(self, indices: Sequence[int]) -> list[int]:
        """Take the items at `indices` out and return their tickets in that order."""
        tickets = [self._tickets[index] for index in indices]
        self._take(sorted(indices), tickets)
        return tickets

    def take_expired(self, now_s: float) -> list[int]:
        """Take out every item whose deadline is not after `now_s`; return their tickets."""
        return self._take_due(self._deadlines, now_s)

    def take_overdue(self, now_s: float) -> list[int]:
        """Take out every item whose own bound is not after `now_s`; return their tickets."""
        return self._take_due(self._bounds, now_s)

    def take_all(self) -> list[int]:
        """Empty the line and return the tickets in arrival order."""
        return self.take(range(len(self._items)))

    def _take_due(self, times: _Times, now_s: float) -> list[int]:
        due = []
        while (first := times.earliest())[0] <= now_s:
            due.append(first[1])
            self._waiting.remove(first[1])
        self._take(sorted(bisect_left(self._tickets, ticket) for ticket in due), due)
        return due

    def _take(self, ascending: Sequence[int], tickets: Sequence[int]) -> None:
        """Take out the items at the `ascending` positions, which have these tickets."""
        if not tickets:
            return
        self._waiting.difference_update(tickets)
        _delete_positions(self._tickets, ascending)
        _delete_positions(self._items, ascending)
        most = 2 * len(self._items) + _FEW
        if self._num_in_classes > most:
            self._drop_gone()
        self._bounds.shrink_to(most)
        self._deadlines.shrink_to(most)

    def _drop_gone(self) -> None:
        waiting = self._waiting
        for priority, line in list(self._classes.items()):
            kept = deque(ticket for ticket in line if ticket in waiting)
            if kept:
                self._classes[priority] = kept
            else:
                del self._classes[priority]
        self._num_in_classes = len(self._items)


class _Times:
    """The earliest of many times, each belonging to a ticket.

    Most arrive in ascending order, because requests of one kind have the same patience: these are
    a plain line, and only the others need a heap.
    """

    def __init__(self, waiting: Container[int]) -> None:
        self._waiting = waiting
        self._line: deque[tuple[float, int]] = deque()
        self._last_s = -_INFINITY  # of the line
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._line) + len(self._heap)

    def add(self, time_s: float, ticket: int) -> None:
        """Note that `ticket` has this time."""
        if time_s >= self._last_s:
            self._last_s = time_s
            self._line.append((time_s, ticket))
        else:
            heapq.heappush(self._heap, (time_s, ticket))

    def earliest(self) -> tuple[float, int]:
        """The first time and its ticket; infinity and -1: there is none."""
        line, heap, waiting = self._line, self._heap, self._waiting
        while line and line[0][1] not in waiting:
            line.popleft()
        while heap and heap[0][1] not in waiting:
            heapq.heappop(heap)
        if line:
            return min(line[0], heap[0]) if heap else line[0]
        self._last_s = -_INFINITY
        return heap[0] if heap else _NEVER

    def shrink_to(self, most: int) -> None:
        """Drop what is gone if more than `most` are kept."""
        if len(self._line) + len(self._heap) > most:
            self._line = deque(entry for entry in self._line if entry[1] in self._waiting)
            self._last_s = self._line[-1][0] if self._line else -_INFINITY
            self._heap = [entry for entry in self._heap if entry[1] in self._waiting]
            heapq.heapify(self._heap)


def _delete_positions(items: list[Entry], ascending: Sequence[int]) -> None:
    if ascending[-1] == len(ascending) - 1:  # exactly the front: one move
        del items[: len(ascending)]
    elif len(ascending) <= _FEW:
        for position in reversed(ascending):
            del items[position]
    else:  # all that stay move once, and not once for each that leaves
        kept: list[Entry] = []
        for gone, next_gone in pairwise((*ascending, len(items))):
            kept += items[gone + 1 : next_gone]
        items[ascending[0] :] = kept
