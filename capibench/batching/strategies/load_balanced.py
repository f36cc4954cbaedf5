"""Several workers of unequal speed: an item goes where it is expected to be done first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.batching.learned_service import STALE, TRUSTED, LearnedService
from capibench.batching.strategy import Dispatch, QueueView, Served, WaitUntil

_PLANNED_BATCHES = 4  # per worker, how far ahead: what waits behind them changes nothing now
_INFINITY = float("inf")


@dataclass
class LoadBalanced:
    """Compares plans by the mean time at which the waiting items would be done, and acts on the
    first step of the best: a batch of some size for some idle worker, or to wait for a busy one.

    The rest of a plan is list scheduling on unrelated machines by earliest completion time
    (Ibarra and Kim, J. ACM 24(2), 1977): the next batch goes to the worker that would finish it
    first. So a lone item may wait for a fast worker that is nearly done rather than take a slow
    idle one, and a long queue uses them all. How long a worker takes is learned per worker, as a
    table. One that nothing is known of is tried as soon as it is idle. And every `explore_every`
    batches one item goes to an idle worker that has run too seldom or too long ago to be known, or
    that failed and has rested (`QueueView.probe_or_rest`); otherwise those that failed get nothing
    while a sound worker is there.

    To wait gives capacity away, and a plan does not know what comes later. So once there is a full
    batch waiting for every busy worker, an idle one gets the next batch however slow it is: else
    near the capacity the line would grow until all are late.

    Where somebody has waited his own bound, a plan neither waits nor leaves more behind than the
    other idle workers can take at once.
    """

    max_batch_size: int
    explore_every: int
    _services: dict[int, LearnedService] = field(init=False, repr=False, default_factory=dict)
    _done_s: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _num_batches: int = field(init=False, repr=False, default=0)
    _last_used: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if self.explore_every < 2:
            raise ValueError(f"explore_every: got {self.explore_every}; expected at least 2")

    def observe(self, served: Served) -> None:
        self._services.setdefault(served.worker, LearnedService()).observe(
            len(served.num_tokens), max(served.num_tokens, default=0), served.service_s
        )

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        batch = view.batch(self.max_batch_size)
        if len(view.workers) == 1:
            reason = "full" if view.is_full(batch, self.max_batch_size) else "idle_worker"
            return self._send(view, 0, len(batch), batch, reason)
        aside = view.probe_or_rest()
        if isinstance(aside, Dispatch):
            return self._send(view, aside.worker, 1, aside.indices, aside.reason)
        if aside is not None:
            return aside
        workers = view.workers
        idle = [i for i, one in enumerate(workers) if not one.num_running and not one.num_failures]
        if not idle:
            return self._send(view, view.idle_worker(), len(batch), batch, "none_sound")
        unknown = [worker for worker in idle if worker not in self._services]
        if unknown:
            worker = min(unknown, key=lambda one: (self._last_used.get(one, 0), one))
            share = -(-len(view.items) // len(idle))
            return self._send(view, worker, min(share, len(batch)), batch, "unknown_worker")
        least = self._least(view, len(idle))
        if least <= 1 and (self._num_batches + 1) % self.explore_every == 0:
            wanting = self._wanting(view, idle)
            if wanting is not None:
                return self._send(view, wanting, 1, batch, "explore")
        return self._best(view, batch, idle, least)

    def _least(self, view: QueueView, num_idle: int) -> int:
        """How many must leave at once, lest somebody who has waited his own bound is left behind by
        a worker that had room for him."""
        if view.items.earliest_bound_s > view.now_s:
            return 1
        return min(self.max_batch_size, len(view.items) - (num_idle - 1) * self.max_batch_size)

    def _best(
        self, view: QueueView, batch: Sequence[int], known: Sequence[int], least: int
    ) -> Dispatch | WaitUntil:
        longest = max(view.items[index].num_tokens for index in batch)
        free_s = [
            _INFINITY
            if worker.num_failures
            else (self._expected_done_s(view, i) if worker.num_running else view.now_s)
            for i, worker in enumerate(view.workers)
        ]
        planned = _PLANNED_BATCHES * len(view.workers) * self.max_batch_size
        waiting = min(len(view.items), planned)
        backlog = len(view.items) > len(known) * self.max_batch_size
        best_sum_s, best_worker, best_size = _INFINITY, known[0], len(batch)
        for worker in known:
            for size in self._sizes(worker, least, len(batch), longest, backlog):
                done_s = view.now_s + self._seconds(worker, size, longest)
                later = [done_s if i == worker else free for i, free in enumerate(free_s)]
                sum_s = size * done_s + self._rest(waiting - size, later, longest)
                if sum_s < best_sum_s:
                    best_sum_s, best_worker, best_size = sum_s, worker, size
        next_s = min((free for free in free_s if free > view.now_s), default=_INFINITY)
        bound_s = view.items.earliest_bound_s
        num_sound = sum(free < _INFINITY for free in free_s)
        all_full = len(view.items) >= (num_sound - len(known)) * self.max_batch_size
        if next_s < _INFINITY and view.now_s < bound_s and not all_full:
            waited = [max(free, next_s) for free in free_s]
            if self._rest(waiting, waited, longest) < best_sum_s:
                return WaitUntil(min(next_s, bound_s))
        return self._send(view, best_worker, best_size, batch, "earliest_completion")

    def _sizes(
        self, worker: int, least: int, most: int, longest: int, backlog: bool
    ) -> Sequence[int]:
        """Those that are compared: `most`, its half and so on, as far as they are not under
        `least`. With a backlog, which is more than all idle workers could take, only the one with
        the best rate: small batches are done sooner, but the queue behind the plan would grow for
        it."""
        sizes = [most >> halvings for halvings in range(most.bit_length())]
        sizes = [size for size in sizes if size >= least] or [most]
        if backlog:
            return [min(sizes, key=lambda size: self._seconds(worker, size, longest) / size)]
        return sizes

    def _rest(self, waiting: int, from_s: Sequence[float], longest: int) -> float:
        """Sum of the times at which `waiting` items are done, each batch going to the worker that
        would finish it first."""
        free_s, sum_s = list(from_s), 0.0
        while waiting > 0:
            size = min(self.max_batch_size, waiting)
            done_s, worker = min(
                (free + self._seconds(i, size, longest), i)
                for i, free in enumerate(free_s)
                if free < _INFINITY
            )
            free_s[worker] = done_s
            sum_s += size * done_s
            waiting -= size
        return sum_s

    def _expected_done_s(self, view: QueueView, worker: int) -> float:
        """When a busy worker will be free. One that is overdue is expected to take as long again as
        it is overdue, so that a worker that hangs is waited for ever less willingly."""
        done_s = self._done_s.get(worker, _INFINITY)
        if done_s > view.now_s:
            return done_s
        since_s = view.workers[worker].busy_since_s
        assert since_s is not None
        return view.now_s + max(view.now_s - done_s, 0.1 * (view.now_s - since_s))

    def _wanting(self, view: QueueView, workers: Sequence[int]) -> int | None:
        """The worker most in need of a trial, if any is: one that failed and has rested, or else
        one of the sound `workers` that is hardly known."""
        rested = [
            (one.failed_s, i)
            for i, one in enumerate(view.workers)
            if one.num_failures and not one.num_running and one.rests_until_s <= view.now_s
        ]
        if rested:
            return min(rested)[1]
        wanting = [
            (
                min(self._services[worker].num_batches, TRUSTED),
                self._last_used.get(worker, 0),
                worker,
            )
            for worker in workers
            if self._services[worker].num_batches < TRUSTED
            or self._num_batches - self._last_used.get(worker, 0) >= STALE
        ]
        return min(wanting)[2] if wanting else None

    def _send(
        self, view: QueueView, worker: int, size: int, batch: Sequence[int], reason: str
    ) -> Dispatch:
        chosen = batch if size == len(batch) else view.batch(size)
        self._num_batches += 1
        self._last_used[worker] = self._num_batches
        if worker in self._services:
            longest = max(view.items[index].num_tokens for index in chosen)
            self._done_s[worker] = view.now_s + self._seconds(worker, len(chosen), longest)
        else:
            self._done_s[worker] = _INFINITY
        return Dispatch(chosen, worker, reason)

    def _seconds(self, worker: int, size: int, longest: int) -> float:
        return self._services[worker].seconds(size, longest)
