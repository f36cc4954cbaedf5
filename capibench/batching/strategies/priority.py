"""Serve the important first, without starving the rest and without serving what is lost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.batching.in_time import most_in_time
from capibench.batching.learned_service import LearnedService, sizes_to_weigh
from capibench.batching.shedding import GIVEN_UP, LOOKED_AT, Shedding
from capibench.batching.strategy import Dispatch, QueueView, Served, Shed, WaitUntil
from capibench.records import RequestPriority

_INFINITY = float("inf")
_REMEMBERED = 100  # batches since the first class was last seen: longer ago, it does not come


@dataclass
class Priority:
    """Strict classes: a batch fills from the first class down, as soon as a worker is idle.

    Strict priority starves the last class under overload, and where more comes than can be served,
    strict classes and a bound on everybody's wait cannot both be had. What is promised instead:

    * Who has waited `starvation_bound_ms` and has no deadline is starved. Of the places in batches
      the starved get `starved_share`, in order of arrival whatever their class, as long as there
      are any (deficit round robin between them and the rest; Shreedhar and Varghese, SIGCOMM 1995).
      With r requests/s served, a request that k older starved ones stand before leaves at most
      (k + 1) / (`starved_share` · r) and a batch after it has starved, at any load.
    * The other places, all of them while nobody is starved, are strictly by class. So the first
      class does not notice the overload while it needs less than 1 - `starved_share` of the rate.
    * Who has a deadline is not starved: it bounds the wait already. Lower classes that cannot be
      served in time are given up, before any higher one is.

    (Ageing, which raises priorities little by little, blurs all classes long before it helps.)

    Nothing that runs is interrupted, so who comes in the first class waits for the running batch.
    While it comes, batches are therefore the shortest ones that keep `throughput_share` of the best
    rate in the learned table of service times; a longer one is formed only of the first class
    itself, or where the first class has deadlines that leave time for it and one more of the first
    class behind it. Without it (none in the last 100 batches), or while it is not known what full
    batches take, they may be full.

    With `shed_unreachable`, a batch takes only who is answered in time in it, and its size is the
    one that answers most of the first class in time, of those most of the second, and so on
    (`most_in_time`, on the first 256 in the line or two batches). Who stands before them in the
    line and would be late is given up, as is whom even the fastest batch seen so far would make
    late.

    One table for all workers: it wants equal ones, and `load_balanced` is for the others.
    """

    max_batch_size: int
    throughput_share: float
    starvation_bound_ms: float
    starved_share: float
    shed_unreachable: bool
    _service: LearnedService = field(init=False, repr=False, default_factory=LearnedService)
    _shedding: Shedding = field(init=False, repr=False, default_factory=Shedding)
    _since_first_class: int = field(init=False, repr=False, default=_REMEMBERED)  # batches
    _patience_s: float = field(init=False, repr=False, default=_INFINITY)  # of the first class
    _owed: float = field(init=False, repr=False, default=0.0)  # places, to the starved

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        for name in ("throughput_share", "starved_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected above 0, at most 1")
        if not self.starvation_bound_ms > 0:
            raise ValueError(
                f"starvation_bound_ms: got {self.starvation_bound_ms}; expected above 0"
            )

    def observe(self, served: Served) -> None:
        self._service.observe(
            len(served.num_tokens), max(served.num_tokens, default=0), served.service_s
        )
        self._shedding.observed()

    def decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        if self.shed_unreachable:
            shed = self._shedding.unreachable(view, self._service.shortest_s())
            if shed is not None:
                return shed
        aside = view.probe_or_rest()
        if aside is not None:
            return aside
        starved = self._starved(view)
        limit, reason = self.max_batch_size, "idle_worker"
        batch = self._batch(view, starved, limit)
        first = [i for i in batch if view.items[i].priority <= RequestPriority.CRITICAL]
        if first:
            self._patience_s = self._patience(view, first)
        if len(first) < len(batch) and self._shortens(view, len(first)):
            short = max(len(first), self._short(view, batch, len(first)))
            if short < len(batch):
                limit, reason = short, "short"
                batch = self._batch(view, starved, limit)
        if self.shed_unreachable and self._makes_late(view, batch):
            decision = self._in_time(view, starved, limit, batch)
            if isinstance(decision, Shed):
                return decision
            batch, reason = decision, "in_time"
        elif starved and starved[0] in batch:
            reason = "starvation"
        elif limit == self.max_batch_size and view.is_full(batch, limit):
            reason = "full"
        self._since_first_class = 0 if first else self._since_first_class + 1
        self._settle(starved, batch)
        return Dispatch(batch, view.idle_worker(), reason)

    def _starved(self, view: QueueView) -> Sequence[int]:
        """Those who have waited too long, oldest first, no more than a batch may hold. Where some
        have deadlines only the oldest are looked at."""
        items = view.items
        since_s = view.now_s - self.starvation_bound_ms / 1000
        if items[0].enqueued_s > since_s:
            return ()
        old = range(bisect_right(items, since_s, key=lambda item: item.enqueued_s))
        if items.earliest_deadline_s < _INFINITY:
            looked_at = old[: max(LOOKED_AT, self.max_batch_size)]
            return [i for i in looked_at if items[i].deadline_s == _INFINITY][: self.max_batch_size]
        return old[: self.max_batch_size]

    def _due_places(self, starved: Sequence[int], limit: int) -> int:
        """How many of the next `limit` places are for the starved. The last digits of a share must
        not cost a place."""
        return min(len(starved), max(0, int(self._owed + self.starved_share * limit + 1e-9)))

    def _settle(self, starved: Sequence[int], batch: Sequence[int]) -> None:
        """Put down what this batch gave to the starved. What they could not use is not saved up."""
        if not starved:
            self._owed = 0.0
            return
        given = len(set(starved[: self._due_places(starved, self.max_batch_size)]) & set(batch))
        self._owed = min(1.0, self._owed + self.starved_share * len(batch) - given)

    def _patience(self, view: QueueView, first: Sequence[int]) -> float:
        """The shortest time from arrival to deadline; infinity: somebody has none."""
        patience_s = [view.items[i].deadline_s - view.items[i].enqueued_s for i in first]
        return _INFINITY if max(patience_s) == _INFINITY else min(patience_s)

    def _shortens(self, view: QueueView, num_first: int) -> bool:
        """Whether batches are to be short: for whom, and as long as it is known what that costs.
        What the full size takes is looked at again and again, lest sizes shrink for ever."""
        comes = num_first > 0 or self._since_first_class < _REMEMBERED
        return comes and not view.draining and self._service.is_fresh(self.max_batch_size)

    def _short(self, view: QueueView, batch: Sequence[int], num_first: int) -> int:
        """The size that is over first, of those with enough of the best rate; or a larger one that
        lets who comes while it runs be answered in time by the batch behind it."""
        longest = max(view.items[index].num_tokens for index in batch)
        sizes = sizes_to_weigh(1, self.max_batch_size)
        seconds = [self._service.seconds(size, longest) for size in sizes]
        shares_s = [second / size for size, second in zip(sizes, seconds, strict=True)]
        enough_s = min(shares_s) / self.throughput_share
        short = -min(
            (second, -size)  # of equally long ones the largest
            for size, second, share_s in zip(sizes, seconds, shares_s, strict=True)
            if share_s <= enough_s
        )[1]
        if self._patience_s == _INFINITY:
            return short
        spare_s = self._patience_s - self._service.seconds(max(1, num_first), longest)
        safe = (size for size, second in zip(sizes, seconds, strict=True) if second <= spare_s)
        return max(short, *safe, 0)

    def _batch(self, view: QueueView, starved: Sequence[int], limit: int) -> Sequence[int]:
        """The next at most `limit` items."""
        num_due = self._due_places(starved, limit)
        if not num_due:
            return view.batch(limit)
        line = self._line(view, starved[:num_due], view.composition.reach(limit))
        return self._composed(view, line, limit, num_due)

    def _line(self, view: QueueView, due: Sequence[int], reach: int) -> Sequence[int]:
        """At most `reach` items in the order of service: the starved whose turn it is, then by
        class."""
        if not due:
            return view.items.first(reach)
        served_first = set(due)
        rest = (i for i in view.items.first(reach + len(due)) if i not in served_first)
        return [*due, *rest][:reach]

    def _composed(
        self, view: QueueView, line: Sequence[int], limit: int, num_due: int
    ) -> Sequence[int]:
        """A batch out of `line`, in order of class and arrival again."""
        items = view.items
        chosen = view.composition.choose(items, line, limit, num_due)
        return sorted(chosen, key=lambda i: (items[i].priority, i)) if num_due else chosen

    def _makes_late(self, view: QueueView, batch: Sequence[int]) -> bool:
        """Whether anybody who waits is due before this batch would end."""
        earliest_s = view.items.earliest_deadline_s
        if earliest_s == _INFINITY or not self._service:
            return False
        longest = max(view.items[index].num_tokens for index in batch)
        return earliest_s < view.now_s + self._service.seconds(len(batch), longest)

    def _in_time(
        self, view: QueueView, starved: Sequence[int], limit: int, batch: Sequence[int]
    ) -> Shed | Sequence[int]:
        """The batch that is in time, or whom to give up for it. `batch` is the one that is not."""
        items = view.items
        longest = max(items[index].num_tokens for index in batch)
        num_due = self._due_places(starved, limit)
        line = self._line(view, starved[:num_due], max(LOOKED_AT, 2 * limit))
        due_s: dict[int, list[float]] = {}
        for position, index in enumerate(line):
            of_class = 0 if position < num_due else items[index].priority
            due_s.setdefault(of_class, []).append(items[index].deadline_s)
        dues = [sorted(of_class) for of_class in due_s.values()]
        most = min(limit, len(line))
        while True:
            ends_s = {
                size: view.now_s + self._service.seconds(size, longest)
                for size in sizes_to_weigh(1, most)
            }
            size = most_in_time(dues, list(ends_s.items()))
            if size is None:
                service_s = self._service.seconds(len(batch), longest)
                return self._shedding.late(view, batch, service_s) or batch
            kept, late, num_due_kept = self._kept(view, line, ends_s[size], size, num_due)
            chosen = self._composed(view, kept, size, num_due_kept)
            if len(chosen) == size:
                return Shed(late, GIVEN_UP) if late else chosen
            most = len(chosen)  # no more of them fit into a batch, and who is late in it changes

    def _kept(
        self, view: QueueView, line: Sequence[int], end_s: float, size: int, num_due: int
    ) -> tuple[list[int], list[int], int]:
        """Of `line`, as far as a batch of `size` sees it: who is in time at `end_s`, who is not,
        and how many of those in time are starved ones whose turn it is."""
        reach, num_due_kept = view.composition.reach(size), 0
        kept: list[int] = []
        late: list[int] = []
        for position, index in enumerate(line):
            if view.items[index].deadline_s < end_s:
                late.append(index)
                continue
            kept.append(index)
            num_due_kept += position < num_due
            if len(kept) == reach:
                break
        return kept, late, num_due_kept
