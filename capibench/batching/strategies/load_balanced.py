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
    table. One that nothing is known of is tried as soon as it is idle, but again only after
    `explore_every` batches. And every `explore_every` batches one item goes to an idle worker that
    has run too seldom or too long ago to be known.

    A worker that fails is idle again at once and must not draw more and more (a black hole). After
    each batch of which it answered nobody it is marked down while 2, 4, 8, ..., at most
    `explore_every` batches go to others, or for as many seconds; one answer clears it. What comes
    meanwhile rather waits for a sound worker that is busy. If none is sound, the one that has
    failed least is tried.
    """

    max_batch_size: int
    explore_every: int
    _services: dict[int, LearnedService] = field(init=False, repr=False, default_factory=dict)
    _done_s: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _num_batches: int = field(init=False, repr=False, default=0)
    _last_used: dict[int, int] = field(init=False, repr=False, default_factory=dict)
    _sent_s: dict[int, float] = field(init=False, repr=False, default_factory=dict)

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
        idle = [i for i, worker in enumerate(view.workers) if worker.num_running == 0]
        rested = [worker for worker in idle if view.now_s >= self._rests_until_s(view, worker)]
        unknown = [worker for worker in rested if worker not in self._services]
        known = [worker for worker in rested if worker in self._services]
        if unknown:
            worker = min(unknown, key=lambda one: (self._last_used.get(one, 0), one))
            share = -(-len(view.items) // len(idle))
            return self._send(view, worker, min(share, len(batch)), batch, "unknown_worker")
        if not known:
            return self._without_any(view, batch, idle)
        if (self._num_batches + 1) % self.explore_every == 0:
            hardly_known = self._hardly_known(known)
            if hardly_known is not None:
                return self._send(view, hardly_known, 1, batch, "explore")
        return self._best(view, batch, known)

    def _rests_until_s(self, view: QueueView, worker: int) -> float:
        """When an idle worker may be given the next batch; minus infinity: it may now."""
        last = self._last_used.get(worker)
        num_failures = view.workers[worker].num_failures
        if last is None or (num_failures == 0 and worker in self._services):
            return -_INFINITY
        pause = self.explore_every
        if worker in self._services:
            pause = min(2**num_failures, pause)
        if self._num_batches - last >= pause:
            return -_INFINITY
        return self._sent_s[worker] + pause

    def _without_any(
        self, view: QueueView, batch: Sequence[int], idle: Sequence[int]
    ) -> Dispatch | WaitUntil:
        """No idle worker may be given a batch yet: wait for one or for a sound busy worker. Where
        there is none, or a bound forbids it, try whoever failed least and rested longest."""
        sound = [i for i, worker in enumerate(view.workers) if not worker.num_failures]
        busy = [worker for worker in sound if view.workers[worker].num_running]
        bound_s = view.items.earliest_bound_s if len(busy) < len(sound) else _INFINITY
        if busy and view.now_s < bound_s:
            times_s = [bound_s, *(self._rests_until_s(view, worker) for worker in idle)]
            times_s += [self._expected_done_s(view, worker) for worker in busy]
            return WaitUntil(min(time_s for time_s in times_s if time_s > view.now_s))
        workers = view.workers
        worker = min(idle, key=lambda i: (workers[i].num_failures, self._last_used.get(i, 0)))
        return self._send(view, worker, len(batch), batch, "none_sound")

    def _best(
        self, view: QueueView, batch: Sequence[int], known: Sequence[int]
    ) -> Dispatch | WaitUntil:
        longest = max(view.items[index].num_tokens for index in batch)
        free_s = [
            self._expected_done_s(view, i)
            if worker.num_running
            else (view.now_s if i in known else _INFINITY)
            for i, worker in enumerate(view.workers)
        ]
        planned = _PLANNED_BATCHES * len(view.workers) * self.max_batch_size
        waiting = min(len(view.items), planned)
        backlog = len(view.items) > len(known) * self.max_batch_size
        best_sum_s, best_worker, best_size = _INFINITY, known[0], len(batch)
        for worker in known:
            for size in self._sizes(worker, len(batch), longest, backlog):
                done_s = view.now_s + self._seconds(worker, size, longest)
                later = [done_s if i == worker else free for i, free in enumerate(free_s)]
                sum_s = size * done_s + self._rest(waiting - size, later, longest)
                if sum_s < best_sum_s:
                    best_sum_s, best_worker, best_size = sum_s, worker, size
        next_s = min((free for free in free_s if free > view.now_s), default=_INFINITY)
        bound_s = view.items.earliest_bound_s
        if next_s < _INFINITY and view.now_s < bound_s:
            waited = [max(free, next_s) for free in free_s]
            if self._rest(waiting, waited, longest) < best_sum_s:
                return WaitUntil(min(next_s, bound_s))
        return self._send(view, best_worker, best_size, batch, "earliest_completion")

    def _sizes(self, worker: int, most: int, longest: int, backlog: bool) -> list[int]:
        """Those that are compared: `most`, its half and so on. With a backlog, which is more than
        all idle workers could take, only the one with the best rate: small batches are done sooner,
        but the queue behind the plan would grow for it."""
        sizes = [most >> halvings for halvings in range(most.bit_length())]
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

    def _hardly_known(self, workers: Sequence[int]) -> int | None:
        """The worker most in need of a trial, if any is."""
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
        self._sent_s[worker] = view.now_s
        if worker in self._services:
            longest = max(view.items[index].num_tokens for index in chosen)
            self._done_s[worker] = view.now_s + self._seconds(worker, len(chosen), longest)
        else:
            self._done_s[worker] = _INFINITY
        return Dispatch(chosen, worker, reason)

    def _seconds(self, worker: int, size: int, longest: int) -> float:
        return self._services[worker].seconds(size, longest)
