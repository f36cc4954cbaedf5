"""Learn how long batches take, and send the batch that gets most requests done in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar, NamedTuple

from capibench.batching.forecast import ArrivalForecast
from capibench.batching.learned_service import LearnedService, sizes_to_weigh
from capibench.batching.shedding import Shedding
from capibench.batching.strategy import Dispatch, QueueView, Served, Shed, WaitUntil

_INFINITY = float("inf")
_TIE = 0.98  # of the best: learned seconds are not more exact than that
_HEADROOM = 1.1  # a rate that keeps up with arrivals: so much above their forecast
_GAIN = 0.9  # waiting pays if the answers come in at most so much of the time


@dataclass
class Adaptive:
    """Goodput within an objective, by forecast and not by trial and error.

    It learns the seconds of a batch as a table by size and length, from service time alone. (Fed
    with the time that requests spent in the system, as AIMD controllers are, it would take a burst
    for a slow batch, shrink the batches and never get out of the burst.) Each decision weighs every
    size that the queue allows, together with the batch after it:

    1. Only sizes that keep up: their rate (size over seconds) exceeds the forecast of arrivals and
       the target, or is the best to be had. So a queue never grows for the sake of a few.
    2. Of those, the sizes by which most waiting items are answered within `objective_ms`, or by
       their own deadline where they have one.
    3. Of those, the ones that get most done per second, counting the next batch too: a size that is
       dear on this machine is split in two, and if batching gains nothing, nothing is batched.
    4. Of those within 2 % (none, where more waits than fits into a batch), the size with the least
       mean time until answered.

    It waits for company only where that answers those who wait and those who are awaited 10 %
    sooner on average, the worker is done no later, and nobody who would make the objective now
    misses it; or up to `max_wait_ms` for `min_batch_size` and for a size that reaches the target
    `target_per_s`. Without batches to learn from it sends what waits, like greedy, which is also
    what it does where size brings rate and nobody is late.

    Sizes that are hardly known are tried, at most every other batch, and only where that costs
    nobody the objective as far as is known: those that may be the best of all, until the table says
    that they are not (some ten batches, once); then the rest, because tables dip where nobody
    expects it. What these cost beyond the same requests in batches of the best size may add up to
    `explore_share` of all service time.

    With `shed_unreachable`, whoever would miss his own deadline in the batch that is best for all
    is given up for the sake of those who would not.

    One table for all workers: it wants equal ones, and `load_balanced` is for the others.
    """

    max_batch_size: int
    min_batch_size: int
    objective_ms: float
    target_per_s: float | None
    max_wait_ms: float
    forecast_window_ms: float
    explore_share: float
    shed_unreachable: bool
    _service: LearnedService = field(init=False, repr=False, default_factory=LearnedService)
    _shedding: Shedding = field(init=False, repr=False, default_factory=Shedding)
    _arrivals: ArrivalForecast = field(init=False, repr=False)
    _served_s: float = field(init=False, repr=False, default=0.0)
    _trials_cost_s: float = field(init=False, repr=False, default=0.0)
    _on_trial: dict[int, _Trial] = field(init=False, repr=False, default_factory=dict)
    _just_tried: bool = field(init=False, repr=False, default=False)

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 1 <= self.min_batch_size <= self.max_batch_size:
            raise ValueError(
                f"min_batch_size: got {self.min_batch_size}; "
                f"expected 1 to max_batch_size ({self.max_batch_size})"
            )
        for name in ("objective_ms", "forecast_window_ms"):
            if not 0 < getattr(self, name) < _INFINITY:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected above 0, finite")
        if self.target_per_s is not None and not 0 < self.target_per_s < _INFINITY:
            raise ValueError(
                f"target_per_s: got {self.target_per_s}; expected above 0, finite, or null"
            )
        if not 0 <= self.max_wait_ms < _INFINITY:
            raise ValueError(f"max_wait_ms: got {self.max_wait_ms}; expected at least 0, finite")
        if not 0 <= self.explore_share < 1:
            raise ValueError(f"explore_share: got {self.explore_share}; expected 0 to below 1")
        self._arrivals = ArrivalForecast(self.forecast_window_ms / 1000)

    def observe(self, served: Served) -> None:
        size = len(served.num_tokens)
        self._service.observe(size, max(served.num_tokens, default=0), served.service_s)
        self._shedding.observed()
        self._served_s += served.service_s
        trial = self._on_trial.get(served.worker)
        if trial is not None and trial.size == size:
            # Charge what it took instead of what it was expected to take.
            self._trials_cost_s += served.service_s - trial.expected_s
            del self._on_trial[served.worker]

    def decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        waiting = len(view.items)
        self._arrivals.saw(waiting, view.items[waiting - 1].enqueued_s, view.now_s)
        decision = self._decide(view)
        leaving = 0 if isinstance(decision, WaitUntil) else len(decision.indices)
        self._arrivals.left(waiting - leaving)
        return decision

    def _decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        if self.shed_unreachable:
            shed = self._shedding.unreachable(view, self._service.shortest_s())
            if shed is not None:
                return shed
        aside = view.probe_or_rest()
        if aside is not None:
            return aside
        batch = view.batch(self.max_batch_size)
        forced = self._forced(view, batch)
        if not self._service:
            too_few = len(batch) < self.min_batch_size
            if forced is None and too_few:
                return WaitUntil(self._latest_s(view))
            return Dispatch(batch, view.idle_worker(), forced or "unknown")
        outlook = _Outlook(view, batch, self._service, self.objective_ms / 1000)
        size = self._best_size(view, outlook)
        if forced is None:
            wait_s = self._wait_s(view, outlook, size)
            if wait_s > view.now_s:
                return WaitUntil(wait_s)
        chosen = batch if size == len(batch) else view.batch(size)
        if self.shed_unreachable:
            shed = self._shedding.late(view, chosen, outlook.seconds(size))
            if shed is not None:
                return shed
        trial = self._trial(view, outlook, size)
        if trial is not None:
            return Dispatch(view.batch(trial), view.idle_worker(), "explore")
        reason = "split" if size < len(batch) else forced or "best_now"
        return Dispatch(chosen, view.idle_worker(), reason)

    def _trial(self, view: QueueView, outlook: _Outlook, best: int) -> int | None:
        """A size to try now for the sake of knowing it, or None."""
        # Of a trial that ended well `observe` has told; on an idle worker it has failed.
        self._on_trial = {
            worker: trial
            for worker, trial in self._on_trial.items()
            if view.workers[worker].num_running
        }
        just_tried, self._just_tried = self._just_tried, False
        if self.explore_share == 0 or just_tried or not self._service.is_trusted(best):
            return None
        sizes = self._sizes(outlook)
        trial, cost_s = self._service.hopeful(sizes), 0.0
        if trial is None:
            left_s = self.explore_share * self._served_s - self._trials_cost_s
            trial = self._service.hardly_known(sizes) if left_s > 0 else None
            if trial is None or any(other.size == trial for other in self._on_trial.values()):
                return None
            cost_s = max(0.0, outlook.seconds(trial) - trial * outlook.seconds(best) / best)
            if cost_s > left_s:
                return None
        if outlook.split(trial, best).num_in_time < outlook.split(best, best).num_in_time:
            return None
        if cost_s > 0:
            self._trials_cost_s += cost_s
            self._on_trial[view.idle_worker()] = _Trial(trial, outlook.seconds(trial))
        self._just_tried = True
        return trial

    def _sizes(self, outlook: _Outlook) -> Sequence[int]:
        return sizes_to_weigh(min(self.min_batch_size, outlook.size), outlook.size)

    def _forced(self, view: QueueView, batch: Sequence[int]) -> str | None:
        """Why waiting is out of the question, or None."""
        if view.is_full(batch, self.max_batch_size):
            return "full"
        if view.draining:
            return "drain"
        return "max_wait" if view.now_s >= self._latest_s(view) else None

    def _latest_s(self, view: QueueView) -> float:
        oldest_s = view.items[0].enqueued_s
        return min(oldest_s + self.max_wait_ms / 1000, view.items.earliest_bound_s)

    def _best_size(self, view: QueueView, outlook: _Outlook) -> int:
        """Steps 1 to 4 of the class's description."""
        most = outlook.size
        sizes = self._sizes(outlook)
        if len(sizes) == 1:
            return most
        wanted = max(self._arrivals.rate_per_s * _HEADROOM, self.target_per_s or 0.0)
        rates = outlook.rates_per_s(sizes)
        best_rate = max(rates)
        enough = min(wanted, best_rate * _TIE)
        dense = sizes[len(rates) - 1 - rates[::-1].index(best_rate)]  # the largest of the best
        plans = [
            outlook.split(size, dense)
            for size, rate in zip(sizes, rates, strict=True)
            if rate >= enough
        ]
        if len(plans) == 1:
            return plans[0].size
        most_in_time = max(plan.num_in_time for plan in plans)
        plans = [plan for plan in plans if plan.num_in_time == most_in_time]
        best_rate = max(plan.rate_per_s for plan in plans)
        tie = 1.0 if outlook.backlog else _TIE  # where more waits than one batch, every bit counts
        plans = [plan for plan in plans if plan.rate_per_s >= best_rate * tie]
        return min(plans, key=lambda plan: (plan.mean_s, -plan.size)).size

    def _wait_s(self, view: QueueView, outlook: _Outlook, size: int) -> float:
        """Until when to wait for company; not after now: not at all."""
        if size < outlook.size:
            return view.now_s
        latest_s = self._latest_s(view)
        if size < self.min_batch_size:
            return latest_s
        if self.target_per_s is not None and self._reaches_target_later(outlook):
            return min(latest_s, outlook.safe_until_s(size + 1))
        gap_s = 1.0 / rate if (rate := self._arrivals.rate_per_s) > 0 else _INFINITY
        now_ends_s = outlook.seconds(size)
        num_in_time = outlook.num_in_time(size, now_ends_s)
        for larger in sizes_to_weigh(size, self.max_batch_size)[1:]:
            more = larger - size
            comes_s = more * gap_s
            if view.now_s + comes_s > latest_s:
                break
            ends_s = comes_s + outlook.seconds(larger)
            if outlook.num_in_time(size, ends_s) < num_in_time:
                break
            they_end_s = max(now_ends_s, comes_s) + outlook.seconds(more)
            mean_now_s = (size * now_ends_s + more * they_end_s) / (size + more)
            if ends_s <= they_end_s and ends_s < mean_now_s * _GAIN:
                return min(view.now_s + gap_s, latest_s)
        return view.now_s

    def _reaches_target_later(self, outlook: _Outlook) -> bool:
        """Whether what waits is too small a batch for the target, and a larger one is not, or is
        at least nearer to it."""
        assert self.target_per_s is not None
        rate = outlook.rate_per_s(outlook.size)
        if rate >= self.target_per_s:
            return False
        larger = sizes_to_weigh(outlook.size, self.max_batch_size)[1:]
        return any(outlook.rate_per_s(size) * _TIE > rate for size in larger)


class _Trial(NamedTuple):
    """A batch that runs for the sake of knowing its size."""

    size: int
    expected_s: float


class _Plan(NamedTuple):
    """To send `size` items now, and then a batch of the rest."""

    size: int
    num_in_time: int
    rate_per_s: float
    mean_s: float  # from now until answered, over both batches


class _Outlook:
    """What the learned table says about the items that could leave now."""

    def __init__(
        self, view: QueueView, batch: Sequence[int], service: LearnedService, objective_s: float
    ) -> None:
        items = [view.items[index] for index in batch]
        self.size = len(items)
        self._now_s = view.now_s
        self._service = service
        self._left_s = [
            (item.enqueued_s + objective_s if item.deadline_s == _INFINITY else item.deadline_s)
            - view.now_s
            for item in items
        ]
        self._tightest_s, self._slackest_s = min(self._left_s), max(self._left_s)
        self._longest = list(accumulate((item.num_tokens for item in items), max))
        self._seconds: dict[int, float] = {}
        self._alike = self._longest[0] == self._longest[-1]  # the length is that of any size
        if self._alike:
            self._seconds |= service.trusted_s(self._longest[0])
        self._num_waiting = len(view.items)
        self.backlog = self._num_waiting > self.size
        self._others_idle = sum(worker.num_running == 0 for worker in view.workers) > 1

    def seconds(self, size: int) -> float:
        """Of a batch of `size`; beyond the items that wait, of ones no longer than these."""
        seconds = self._seconds.get(size)
        if seconds is None:
            longest = self._longest[min(size, self.size) - 1]
            seconds = self._seconds[size] = self._service.seconds(size, longest)
        return seconds

    def rate_per_s(self, size: int) -> float:
        return _per_s(size, self.seconds(size))

    def rates_per_s(self, sizes: Iterable[int]) -> list[float]:
        """The same for many sizes."""
        known, seconds = self._seconds, self.seconds
        return [_per_s(size, known[size] if size in known else seconds(size)) for size in sizes]

    def num_in_time(self, size: int, ends_s: float, first: int = 0) -> int:
        """How many of the items from `first` to `size` are in time if they end in `ends_s`."""
        if ends_s <= self._tightest_s:
            return min(size, self.size) - first
        if ends_s > self._slackest_s:
            return 0
        return sum(left_s >= ends_s for left_s in self._left_s[first:size])

    def safe_until_s(self, size: int) -> float:
        """When a batch of `size` must start for all that would be in time now to be in time."""
        now_ends_s = self.seconds(self.size)
        within_s = [left_s for left_s in self._left_s if left_s >= now_ends_s]
        return self._now_s + min(within_s, default=0.0) - self.seconds(size)

    def split(self, size: int, dense: int) -> _Plan:
        """Send `size` now and of the rest at most `dense`, the size with the best rate, after them,
        or beside them where a worker is idle."""
        first_s = self.seconds(size)
        rest = min(self._num_waiting - size, dense)
        if rest == 0:
            return _Plan(size, self.num_in_time(size, first_s), _per_s(size, first_s), first_s)
        if self._alike:
            rest_s = self.seconds(rest)
        else:
            rest_s = self._service.seconds(rest, self._longest[-1])
        rest_ends_s = rest_s if self._others_idle else first_s + rest_s
        if first_s <= self._tightest_s and rest_ends_s <= self._tightest_s:
            num_in_time = min(size + rest, self.size)
        else:
            num_in_time = self.num_in_time(size, first_s)
            num_in_time += self.num_in_time(size + rest, rest_ends_s, first=size)
        return _Plan(
            size,
            num_in_time,
            _per_s(size + rest, first_s + rest_s),
            (size * first_s + rest * rest_ends_s) / (size + rest),
        )


def _per_s(size: int, seconds: float) -> float:
    return size / seconds if seconds > 0 else _INFINITY
