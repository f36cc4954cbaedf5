"""Serve the important first, without starving the rest and without serving what is lost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.batching.in_time import most_in_time
from capibench.batching.learned_service import LearnedService
from capibench.batching.shedding import GIVEN_UP, Shedding
from capibench.batching.strategy import Dispatch, QueueView, Served, Shed
from capibench.records import RequestPriority

_REMEMBERED = 100  # batches since the first class was last seen: longer ago, it does not come


@dataclass
class Priority:
    """Strict classes: a batch fills from the first class down, as soon as a worker is idle.

    Strict priority starves the last class under overload. Here starvation has an explicit bound: an
    item that has waited `starvation_bound_ms` counts as one of the first class, and the first class
    is served in order of arrival. (Ageing, which raises priorities little by little, blurs all
    classes long before it helps anyone.)

    Nothing that runs is interrupted, so who comes in the first class waits for the running batch.
    While it comes, batches are therefore the shortest ones that keep `throughput_share` of the best
    rate in the learned table of service times; a longer one is formed only of the first class
    itself. Without it (none in the last 100 batches), or while it is not known what full batches
    take, they may be full.

    With `shed_unreachable`, a batch takes only who is answered in time in it, and its size is the
    one that answers most of the first class in time, of those most of the second, and so on
    (`most_in_time`). Who stands before them in the line and would be late is given up, as is at
    once whom even the fastest batch seen so far would make late.
    """

    max_batch_size: int
    throughput_share: float
    starvation_bound_ms: float
    shed_unreachable: bool
    _service: LearnedService = field(init=False, repr=False, default_factory=LearnedService)
    _shedding: Shedding = field(init=False, repr=False, default_factory=Shedding)
    _since_first_class: int = field(init=False, repr=False, default=_REMEMBERED)  # batches

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 0 < self.throughput_share <= 1:
            raise ValueError(
                f"throughput_share: got {self.throughput_share}; expected above 0, at most 1"
            )
        if not self.starvation_bound_ms > 0:
            raise ValueError(
                f"starvation_bound_ms: got {self.starvation_bound_ms}; expected above 0"
            )

    def observe(self, served: Served) -> None:
        self._service.observe(
            len(served.num_tokens), max(served.num_tokens, default=0), served.service_s
        )
        self._shedding.observed()

    def decide(self, view: QueueView) -> Dispatch | Shed:
        if self.shed_unreachable:
            shed = self._shedding.unreachable(view, self._service.shortest_s())
            if shed is not None:
                return shed
        num_starved = self._num_starved(view)
        limit, reason = self.max_batch_size, "idle_worker"
        batch = self._batch(view, num_starved, limit)
        num_first = sum(view.items[i].priority <= RequestPriority.CRITICAL for i in batch)
        if num_first < len(batch) and self._shortens(view, num_first):
            short = max(num_first, self._short(view, batch))
            if short < len(batch):
                limit, reason = short, "short"
                batch = self._batch(view, num_starved, limit)
        if self.shed_unreachable and self._makes_late(view, batch):
            decision = self._in_time(view, num_starved, limit, batch)
            if isinstance(decision, Shed):
                return decision
            batch, reason = decision, "in_time"
        elif num_starved and 0 in batch:
            reason = "starvation"
        elif limit == self.max_batch_size and view.is_full(batch, limit):
            reason = "full"
        self._since_first_class = 0 if num_first else self._since_first_class + 1
        return Dispatch(batch, view.idle_worker(), reason)

    def _num_starved(self, view: QueueView) -> int:
        """How many have waited too long. They are the first in order of arrival."""
        since_s = view.now_s - self.starvation_bound_ms / 1000
        if view.items[0].enqueued_s > since_s:
            return 0
        return bisect_right(view.items, since_s, key=lambda item: item.enqueued_s)

    def _shortens(self, view: QueueView, num_first: int) -> bool:
        """Whether batches are to be short: for whom, and as long as it is known what that costs.
        What the full size takes is looked at again and again, lest sizes shrink for ever."""
        comes = num_first > 0 or self._since_first_class < _REMEMBERED
        return comes and not view.draining and self._service.is_fresh(self.max_batch_size)

    def _short(self, view: QueueView, batch: Sequence[int]) -> int:
        """The size that is over first, of those with enough of the best rate."""
        longest = max(view.items[index].num_tokens for index in batch)
        seconds = [self._service.seconds(n, longest) for n in range(1, self.max_batch_size + 1)]
        shares_s = [second / size for size, second in enumerate(seconds, start=1)]  # of one item
        enough_s = min(shares_s) / self.throughput_share
        enough = (
            (second, -size)  # of equally long ones the largest
            for size, second in enumerate(seconds, start=1)
            if shares_s[size - 1] <= enough_s
        )
        return -min(enough)[1]

    def _batch(self, view: QueueView, num_starved: int, limit: int) -> Sequence[int]:
        """The next at most `limit` items in the order of service."""
        if not num_starved:
            return view.batch(limit)
        line, num_urgent = self._line(view, num_starved, view.composition.reach(limit))
        return view.composition.choose(view.items, line, limit, num_urgent)

    def _line(self, view: QueueView, num_starved: int, reach: int) -> tuple[list[int], int]:
        """At most `reach` items in the order of service: starved ones and the first class in order
        of arrival, then the other classes. And how many of them stand before those."""
        line = list(range(min(num_starved, reach)))
        num_urgent = len(line)
        if len(line) < reach:
            # At most `num_starved` of these are in the line already.
            rest = [i for i in view.items.first(reach + num_starved) if i >= num_starved]
            line += rest[: reach - len(line)]
            num_urgent += sum(
                view.items[i].priority <= RequestPriority.CRITICAL for i in line[num_urgent:]
            )
        return line, num_urgent

    def _makes_late(self, view: QueueView, batch: Sequence[int]) -> bool:
        """Whether anybody who waits is due before this batch would end."""
        earliest_s = view.items.earliest_deadline_s
        if earliest_s == float("inf") or not self._service:
            return False
        longest = max(view.items[index].num_tokens for index in batch)
        return earliest_s < view.now_s + self._service.seconds(len(batch), longest)

    def _in_time(
        self, view: QueueView, num_starved: int, limit: int, batch: Sequence[int]
    ) -> Shed | Sequence[int]:
        """The batch that is in time, or whom to give up for it. `batch` is the one that is not."""
        items = view.items
        line, num_urgent = self._line(view, num_starved, len(items))
        longest = max(items[index].num_tokens for index in batch)
        ends_s = [
            view.now_s + self._service.seconds(size, longest)
            for size in range(1, min(limit, len(line)) + 1)
        ]
        due_s: dict[int, list[float]] = {}
        for position, index in enumerate(line):
            of_class = 0 if position < num_urgent else items[index].priority
            due_s.setdefault(of_class, []).append(items[index].deadline_s)
        size = most_in_time([sorted(dues) for dues in due_s.values()], ends_s)
        if size is None:
            return self._shedding.late(view, batch, ends_s[len(batch) - 1] - view.now_s) or batch
        reach, urgent = view.composition.reach(size), 0
        kept: list[int] = []
        late: list[int] = []
        for position, index in enumerate(line):
            if items[index].deadline_s < ends_s[size - 1]:
                late.append(index)
                continue
            kept.append(index)
            urgent += position < num_urgent
            if len(kept) == reach:
                break
        if late:
            return Shed(late, GIVEN_UP)
        return view.composition.choose(items, kept, size, urgent)
