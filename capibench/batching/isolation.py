"""Finding the items that make a batch fail, so that their neighbours are answered all the same.

A batch is one call for many requests, and an error says that the call failed, not for whose sake.
Failing everyone lets one poisoned item hurt all its neighbours, which every batcher in common use
does. Pure bookkeeping; the batcher runs the parts that this names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_DOUBTED_AFTER = 7  # failed runs with no good one: the batch, its halves and its quarters


class Isolation(Generic[T]):
    """Halves what failed, breadth first, until each culprit is alone (group testing by binary
    splitting; Hwang 1972). An item fails for good only when it has failed alone, so that however
    many culprits there are, every other item is answered.

    When the batch, its halves and its quarters have all failed, there is a culprit in each quarter,
    or what fails is not the items' fault but the worker's. Then single items are tried, from all
    over the batch, until one is served: where most items are culprits, testing groups is no better
    than testing each (Ungar 1960). Once one is served, what is left is halved again.

    k culprits among n items cost at most k (2⌈log2 n⌉ + 1) + 1 further runs and never more than
    2n - 2; a worker that fails whatever it is given costs n + 6 (fewer below 8 items). One that
    knows that it is broken says so with `WorkerBroken`, and costs none.
    """

    def __init__(self, failed: Sequence[T]) -> None:
        """Begin with a batch whose run has failed."""
        self._parts: deque[Sequence[T]] = deque()  # none of them has run as it is now
        self._num_failed_runs = 0
        self._any_succeeded = False
        self.lost: list[T] = list(self.failed(failed))  # for good, before any further run

    def next(self) -> Sequence[T] | None:
        """The part to run next; None when every item's end is known."""
        if not self._parts:
            return None
        part = self._parts.popleft()
        if len(part) > 1 and self._num_failed_runs >= _DOUBTED_AFTER and not self._any_succeeded:
            self._parts.append(part[1:])
            return part[:1]
        return part

    def succeeded(self) -> None:
        """The part that `next` named last was served."""
        self._any_succeeded = True

    def failed(self, part: Sequence[T]) -> Sequence[T]:
        """The part that `next` named last has failed; returns the items that fail for good."""
        self._num_failed_runs += 1
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
