"""Finding the item that makes a batch fail, so that its neighbours are answered all the same.

A batch is one call for many requests, and an error says that the call failed, not for whose sake.
Failing everyone lets one poisoned item hurt all its neighbours, which every batcher in common use
does. Pure bookkeeping; the batcher runs the parts that this names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_BROKEN_AFTER = 7  # failed runs with no good one: the batch, its halves and its quarters


class Isolation(Generic[T]):
    """Halves what failed, breadth first, until each culprit is alone (group testing by binary
    splitting; Hwang 1972).

    k culprits among n items cost at most 2·k·⌈log2 n⌉ further runs, and every other item is
    answered. What fails whatever it is given is not the items' fault but the worker's: when the
    batch, its halves and its quarters have all failed, nothing more is tried and all fail. That is
    six further runs, whatever the size of the batch; it takes a culprit in each quarter, so four,
    to be mistaken for it.
    """

    def __init__(self, failed: Sequence[T]) -> None:
        """Begin with a batch whose run has failed."""
        self._parts: deque[Sequence[T]] = deque()
        self._num_failed_runs = 0
        self._any_succeeded = False
        self.lost: list[T] = list(self.failed(failed))  # for good, before any further run

    def next(self) -> Sequence[T] | None:
        """The part to run next; None when every item's end is known."""
        return self._parts.popleft() if self._parts else None

    def succeeded(self) -> None:
        """The part that `next` named last was served."""
        self._any_succeeded = True

    def failed(self, part: Sequence[T]) -> Sequence[T]:
        """The part that `next` named last has failed; returns the items that fail for good."""
        self._num_failed_runs += 1
        if self._num_failed_runs >= _BROKEN_AFTER and not self._any_succeeded:
            return [*part, *self.rest()]
        if len(part) == 1:
            return part
        middle = len(part) // 2
        self._parts += (part[:middle], part[middle:])
        return ()

    def rest(self) -> Sequence[T]:
        """Give up: every item whose end is not known yet."""
        items = [item for part in self._parts for item in part]
        self._parts.clear()
        return items
