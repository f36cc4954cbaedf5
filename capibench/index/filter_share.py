"""Which filters are answered by comparing all that they allow, because that is quicker.

Scanning costs in proportion to what a filter allows; a structure has to look the further, the less
it allows. Where the two meet depends on structure, effort, number of vectors, batch and machine, so
it is measured, not assumed. Only time is at stake: a scan is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter

# A structure has to be so much quicker before it is asked: a tie goes to the exact answer, and
# what is measured once may be a little off later.
_MARGIN = 1.1
_MIN_REPEATS = 3
_MAX_REPEATS = 9
_MEASURE_S = 0.02  # repeats end after so long


def scanned_share(lead: Callable[[float], float], least_share: float) -> float:
    """The greatest share of the vectors that is better scanned; 1: scanning always wins.

    Walks down the powers of two from all vectors, as long as the structure wins, and puts the
    share on a straight line in logarithms between its last victory and its first defeat.

    Args:
        lead: share → seconds of a scan over seconds of the structure.
        least_share: below it nobody asks.
    """
    above: tuple[float, float] | None = None
    share = 1.0
    while share >= least_share:
        won = math.log(lead(share) / _MARGIN)
        if won <= 0:
            if above is None:
                return 1.0
            before, won_before = above
            return share * math.exp(math.log(before / share) * -won / (won_before - won))
        above = share, won
        share /= 2
    return least_share


def quickest_s(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Least seconds of each of two calls, made in turn after one call each that does not count:
    whatever else the machine does only ever adds to a time."""
    one()
    other()
    least, other_least = math.inf, math.inf
    begin_s = perf_counter()
    for i in range(_MAX_REPEATS):
        if i >= _MIN_REPEATS and perf_counter() - begin_s > _MEASURE_S:
            break
        start_s = perf_counter()
        one()
        middle_s = perf_counter()
        other()
        least = min(least, middle_s - start_s)
        other_least = min(other_least, perf_counter() - middle_s)
    return least, other_least
