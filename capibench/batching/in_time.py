"""Which batch answers most requests in time, where not all who wait can be: strict by class."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def most_in_time(
    due_s: Sequence[Sequence[float]], ends_s: Sequence[tuple[int, float]]
) -> int | None:
    """The size of the batch that answers most of the first class in time; of those that do, most
    of the second; and so on. None: in any batch everybody is late.

    Within a class that is the largest batch that can be filled with items that are in time in it.
    A lower class never costs a higher one an answer: it fills up only what is left of the batch.

    Args:
        due_s: deadlines of the waiting items by class, the first class first, ascending in each.
        ends_s: sizes of a batch, ascending, and when it would end. A larger one need not end
            later: service curves are not monotone.

    Costs O(sizes · classes · log items).
    """
    best: list[int] = []
    best_size = None
    for size, end_s in ends_s:
        left, taken = size, []
        for line in due_s:
            number = min(left, len(line) - bisect_left(line, end_s))
            taken.append(number)
            left -= number
        if not left and taken > best:
            best, best_size = taken, size
    return best_size
