"""Serve the important first, without starving the rest and without serving what is lost."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.batching.learned_service import LearnedService
from capibench.batching.shedding import Shedding
from capibench.batching.strategy import Dispatch, QueueView, Served, Shed
from capibench.records import RequestPriority


@dataclass
class Priority:
    """Strict classes: a batch fills from the first class down, as soon as a worker is idle.

    Strict priority starves the last class under overload. Here starvation has an explicit bound: an
    item that has waited `starvation_bound_ms` counts as one of the first class, and the first class
    is served in order of arrival. (Ageing, which raises priorities little by little, blurs all
    classes long before it helps anyone.) Nothing that runs is interrupted, so `max_batch_size` sets
    how long the first class waits at worst: one full batch.

    With `shed_unreachable`, an item whose deadline cannot be met even by the fastest batch seen so
    far is given up at once, so that its place goes to one that can.
    """

    max_batch_size: int
    starvation_bound_ms: float
    shed_unreachable: bool
    _service: LearnedService = field(init=False, repr=False, default_factory=LearnedService)
    _shedding: Shedding = field(init=False, repr=False, default_factory=Shedding)

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
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
        most = self.max_batch_size
        num_starved = self._num_starved(view)
        batch = self._batch(view, num_starved) if num_starved else view.batch(most)
        if num_starved and 0 in batch:
            reason = "starvation"
        else:
            reason = "full" if view.is_full(batch, most) else "idle_worker"
        return Dispatch(batch, view.idle_worker(), reason)

    def _num_starved(self, view: QueueView) -> int:
        """How many have waited too long. They are the first in order of arrival."""
        since_s = view.now_s - self.starvation_bound_ms / 1000
        if view.items[0].enqueued_s > since_s:
            return 0
        return bisect_right(view.items, since_s, key=lambda item: item.enqueued_s)

    def _batch(self, view: QueueView, num_starved: int) -> list[int]:
        """Starved items and the first class in order of arrival, then the other classes."""
        reach = view.composition.reach(self.max_batch_size)
        line = list(range(min(num_starved, reach)))
        num_urgent = len(line)
        if len(line) < reach:
            # At most `num_starved` of these are in the line already.
            rest = [i for i in view.items.first(reach + num_starved) if i >= num_starved]
            line += rest[: reach - len(line)]
            num_urgent += sum(
                view.items[i].priority <= RequestPriority.CRITICAL for i in line[num_urgent:]
            )
        return list(view.composition.choose(view.items, line, self.max_batch_size, num_urgent))
