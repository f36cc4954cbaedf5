"""The queue of one batcher, kept so that no decision has to look at every waiting item.

Pure bookkeeping, no clock and no event loop. Costs with n waiting items, k of them leaving: adding
is O(1), taking is k bisections plus moving pointers, the front of the line is O(k log n), and the
earliest deadline and bound are amortised O(log n).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from capibench.batching.strategy import WaitingItem

_INFINITY = float("inf")


class WaitingQueue:
    """Waiting items in arrival order; each is known by the ticket that it got on arrival."""

    def __init__(self, items: Iterable[WaitingItem] = ()) -> None:
        self._items: list[WaitingItem] = []  # arrival order
        self._tickets: list[int] = []  # same order, ascending
        self._classes: dict[int, list[int]] = {}  # priority → tickets, ascending
        self._by_ticket: dict[int, WaitingItem] = {}
        self._next_ticket = 0
        self._bounds: list[tuple[float, int]] = []  # heaps that may name tickets already gone
        self._deadlines: list[tuple[float, int]] = []
        for item in items:
            self.add(item)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> WaitingItem:
        return self._items[index]

    def __iter__(self) -> Iterator[WaitingItem]:
        return iter(self._items)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._by_ticket

    def first(self, count: int) -> Sequence[int]:
        """Indices of at most `count` items: by priority, then by arrival."""
        if len(self._classes) == 1:
            return range(min(count, len(self._items)))
        indices: list[int] = []
        for priority in sorted(self._classes):
            line = self._classes[priority]
            chosen = islice(line, count - len(indices))
            indices.extend(bisect_left(self._tickets, ticket) for ticket in chosen)
            if len(indices) == count:
                break
        return indices

    @property
    def earliest_bound_s(self) -> float:
        """When the first item has waited its own `max_wait_s`."""
        return self._earliest(self._bounds)

    @property
    def earliest_deadline_s(self) -> float:
        """The first deadline of a waiting item."""
        return self._earliest(self._deadlines)

    def add(self, item: WaitingItem) -> int:
        """Append `item`, which did not arrive before any that waits, and return its ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._items.append(item)
        self._tickets.append(ticket)
        self._by_ticket[ticket] = item
        line = self._classes.get(item.priority)
        if line is None:
            self._classes[item.priority] = [ticket]
        else:
            line.append(ticket)
        if item.max_wait_s != _INFINITY:
            self._push(self._bounds, (item.enqueued_s + item.max_wait_s, ticket))
        if item.deadline_s != _INFINITY:
            self._push(self._deadlines, (item.deadline_s, ticket))
        return ticket

    def remove(self, ticket: int) -> None:
        """Take one item out of the line."""
        self._forget([ticket])

    def take(self, indices: Sequence[int]) -> list[int]:
        """Take the items at `indices` out and return their tickets in that order."""
        tickets = [self._tickets[index] for index in indices]
        self._forget(tickets)
        return tickets

    def take_expired(self, now_s: float) -> list[int]:
        """Take out every item whose deadline is not after `now_s`; return their tickets."""
        expired = []
        while self.earliest_deadline_s <= now_s:
            expired.append(heapq.heappop(self._deadlines)[1])
            self._forget(expired[-1:])
        return expired

    def take_all(self) -> list[int]:
        """Empty the line and return the tickets in arrival order."""
        return self.take(range(len(self._items)))

    def _forget(self, tickets: list[int]) -> None:
        if not tickets:
            return
        by_class: dict[int, list[int]] = {}
        for ticket in tickets:
            by_class.setdefault(self._by_ticket.pop(ticket).priority, []).append(ticket)
        for priority, leaving in by_class.items():
            line = self._classes[priority]
            _delete(line, sorted(leaving))
            if not line:
                del self._classes[priority]
        ascending = sorted(tickets)
        positions = _delete(self._tickets, ascending)
        _delete_positions(self._items, positions)

    def _earliest(self, heap: list[tuple[float, int]]) -> float:
        while heap and heap[0][1] not in self._by_ticket:
            heapq.heappop(heap)
        return heap[0][0] if heap else _INFINITY

    def _push(self, heap: list[tuple[float, int]], entry: tuple[float, int]) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 2 * len(self._by_ticket) + 64:  # mostly tickets that are gone
            heap[:] = [known for known in heap if known[1] in self._by_ticket]
            heapq.heapify(heap)


def _delete(ascending: list[int], values: list[int]) -> list[int]:
    """Delete the ascending `values` from a sorted list; return the positions they had."""
    count = len(values)
    if ascending[count - 1] == values[-1]:  # exactly the front: one move
        del ascending[:count]
        return list(range(count))
    positions = [bisect_left(ascending, value) for value in values]
    _delete_positions(ascending, positions)
    return positions


def _delete_positions(items: list[int] | list[WaitingItem], positions: list[int]) -> None:
    if positions[-1] == len(positions) - 1:
        del items[: len(positions)]
        return
    for position in reversed(positions):
        del items[position]
