"""How a filtered search is answered: by asking the structure, by asking again, or by a scan.

Scanning costs in proportion to what a filter allows, and is exact. A structure has to look the
further, the less it allows; and where a filter forbids just what lies near its queries (another
tenant's documents, another topic) it finds too few allowed candidates even so: then the answer
costs the attempt and a scan. So two things decide, and both are measured: what an attempt costs,
and how often it comes short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from weakref import WeakKeyDictionary

from capibench.index.vector_store import RowSet

# An attempt looks so many times further than the one before.
WIDENING = 4
MAX_ATTEMPTS = 3
# Queries by which a scan is compared with the structure, at most: larger batches behave alike.
NUM_QUERIES_TO_TIME = 64
# An attempt counts so many times what was measured: a tie goes to the exact answer, and what is
# measured once may be off later.
_MARGIN = 1.25
# Filters whose shares differ by less than this factor cost the same.
_SAME_SHARE = 1.2
# So many attempts with a filter weigh as much as what is known of other filters of its size.
_NUM_ASSUMED = 4
# With each search what was experienced counts this much less, so that a filter that was given up
# is tried again, but so seldom that it costs a hundredth of the scans.
_FADING = 1 - 1 / 64
# Searches with a filter that are scanned unasked once no attempt is worth making: to think about
# each costs a twentieth of a small scan.
_RESTING = 16
_FEW_QUERIES = 8  # asked first where there are many
_REPEATS_S = 0.02  # repeats end after so long: what takes longer varies less
_MAX_REPEATS = 9

Key = tuple[int, int]  # k, and the logarithm of the size of the batch


@dataclass
class Shortfall:
    """How often an attempt found too few allowed candidates, lately."""

    asked: float = 0.0
    short: float = 0.0

    def add(self, *, short: bool) -> None:
        self.asked += 1
        self.short += short

    def fade(self, num_searches: int) -> None:
        kept = _FADING**num_searches
        self.asked *= kept
        self.short *= kept

    def share(self, assumed: float) -> float:
        """Of attempts that come short; `assumed` as long as few were made."""
        return (self.short + _NUM_ASSUMED * assumed) / (self.asked + _NUM_ASSUMED)


def worth_asking(costs: Sequence[float], short_shares: Sequence[float]) -> list[int]:
    """Which attempts to make, in order, before what is left is scanned.

    Backwards from the scan, whose cost is 1: an attempt is worth making if its cost, and that of
    what follows where it comes short, is expected to be less than that of what follows.

    Args:
        costs: of each attempt, in scans of the same filter; each looks further than the last.
        short_shares: how often each comes short.
    """
    chosen: list[int] = []
    following = 1.0
    for i in reversed(range(len(costs))):
        expected = _MARGIN * costs[i] + short_shares[i] * following
        if expected < following:
            chosen.insert(0, i)
            following = expected
    return chosen


@dataclass
class _Known:
    """Of one filter, for searches that cost the same."""

    share_class: int
    own: list[Shortfall]  # by attempt
    of_all: list[Shortfall]  # of all filters of its share class
    num_resting: int = 0  # searches that are still to be scanned unasked


@dataclass
class FilterPlanner:
    """What one index has learnt about its filters. A batch counts as one search: that a single
    query of it comes short is counted as if all had, which is the worst case.

    The stream of a filter's searches costs at most a few attempts, and a hundredth of the scans,
    more than scanning always: attempts that only come short are soon given up, and tried again
    seldom. A filter that is prepared anew for each search is judged by those before it that
    allowed about as much.
    """

    _costs: dict[tuple[Key, int, int], float] = field(default_factory=dict)
    _of_all: dict[tuple[Key, int], list[Shortfall]] = field(default_factory=dict)
    _of_filter: WeakKeyDictionary[RowSet, dict[Key, _Known]] = field(
        default_factory=WeakKeyDictionary
    )

    def attempts(
        self, among: RowSet, share: float, key: Key, most: int, cost: Callable[[int], float]
    ) -> list[int]:
        """The attempts, of numbers below `most`, that one search should make.

        Args:
            among: the filter.
            share: of the vectors that it allows.
            key: searches that cost the same.
            most: number of attempts that differ.
            cost: measures an attempt, in scans; asked once for all filters of about this share,
                and for a further attempt only once the one before has come short.
        """
        known = self._known(among, share, key)
        if known.num_resting:
            known.num_resting -= 1
            return []
        costs: list[float] = []
        for i in range(min(most, 1 + sum(s.short > 0 for s in known.own))):
            of_attempt = key, known.share_class, i
            if of_attempt not in self._costs:
                self._costs[of_attempt] = cost(i)
            costs.append(self._costs[of_attempt])
        shorts = [s.share(a.share(0.0)) for s, a in zip(known.own, known.of_all, strict=True)]
        chosen = worth_asking(costs, shorts[: len(costs)])
        if not chosen:
            known.num_resting = _RESTING
        for shortfall in known.own:
            shortfall.fade(1 + known.num_resting)
        for shortfall in known.of_all:
            shortfall.fade(1)
        return chosen

    def record(self, among: RowSet, share: float, key: Key, attempt: int, *, short: bool) -> None:
        """An attempt found enough, or came short."""
        known = self._known(among, share, key)
        for shortfalls in (known.own, known.of_all):
            shortfalls[attempt].add(short=short)

    def _known(self, among: RowSet, share: float, key: Key) -> _Known:
        of_filter = self._of_filter.get(among)
        if of_filter is None:
            of_filter = self._of_filter[among] = {}
        known = of_filter.get(key)
        if known is None:
            share_class = round(math.log(share, _SAME_SHARE))
            of_all = self._of_all.setdefault((key, share_class), _none_yet())
            known = of_filter[key] = _Known(share_class, _none_yet(), of_all)
        return known


def _none_yet() -> list[Shortfall]:
    return [Shortfall() for _ in range(MAX_ATTEMPTS)]


def relative_cost(
    scan: Callable[[], object], ask: Callable[[int], object], num_queries: int
) -> float:
    """Seconds of asking over seconds of a scan, or any number above 1 where that is sure to be.

    A structure that takes longer with a part of the queries than the scan with all has lost and is
    not asked further: all this takes six scans at the very most, and about three as a rule.

    Args:
        scan: compares all queries.
        ask: asks the structure so many of the queries, scanning none.
        num_queries: how many there are.
    """
    scan_s, num_asked = _seconds(scan), _FEW_QUERIES
    while num_asked < num_queries:
        part = partial(ask, num_asked)
        ask_s = min(_seconds(part), _seconds(part))
        if ask_s > scan_s:
            return ask_s / scan_s
        num_asked *= 2
    scan_s, ask_s = quickest_s(scan, partial(ask, num_queries))
    return ask_s / scan_s


def quickest_s(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Least seconds of each of two calls, made in turn: whatever else the machine does only ever
    adds to a time."""
    least, other_least = math.inf, math.inf
    begin_s = perf_counter()
    for i in range(_MAX_REPEATS):
        if i and perf_counter() - begin_s > _REPEATS_S:
            break
        least, other_least = min(least, _seconds(one)), min(other_least, _seconds(other))
    return least, other_least


def _seconds(call: Callable[[], object]) -> float:
    begin_s = perf_counter()
    call()
    return perf_counter() - begin_s
