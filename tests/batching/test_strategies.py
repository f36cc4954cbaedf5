"""The laws of every batching choice, and the exact decisions that set the strategies apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from choice_files import choices, load_choice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capibench.batching.composition import Composition
from capibench.batching.laws import broken_law
from capibench.batching.strategies.continuous import Continuous
from capibench.batching.strategies.fixed_size import FixedSize
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategies.time_based import TimeBased
from capibench.batching.strategy import (
    Dispatch,
    LearnsService,
    QueueView,
    Served,
    Shed,
    Strategy,
    WaitingItem,
    WaitUntil,
    WorkerView,
)
from capibench.batching.waiting import WaitingQueue
from capibench.config import build

INFINITY = float("inf")
IDLE, BUSY = WorkerView(0, None), WorkerView(1, 0.0)


def shipped(name: str, **changes: object) -> Any:
    """The strategy of a shipped choice, with some of its knobs changed."""
    node = load_choice("batching", name)["strategy"]
    return build({**node, **changes}, "batching.strategy")


def item(
    enqueued_s: float, priority: int = 3, max_wait_s: float = INFINITY, deadline_s: float = INFINITY
) -> WaitingItem:
    return WaitingItem(priority, 0, enqueued_s, max_wait_s, deadline_s)


def view(
    items: list[WaitingItem], now_s: float, draining: bool = False, workers: int = 1
) -> QueueView:
    return QueueView(WaitingQueue(items), now_s, (IDLE,) * workers, draining)


def decided(strategy: Strategy, seen: QueueView) -> tuple[list[int], str] | float:
    decision = strategy.decide(seen)
    if isinstance(decision, WaitUntil):
        return decision.time_s
    return list(decision.indices), decision.reason


arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.004, 0.02, 0.3]),  # gap
        st.integers(1, 5),  # priority
        st.sampled_from([0.0, 0.003, 0.05, INFINITY]),  # own bound
        st.sampled_from([0.002, 0.03, INFINITY]),  # deadline, after arrival
        st.sampled_from([0, 1, 7, 8, 30, 100]),  # tokens
    ),
    min_size=1,
    max_size=40,
)
compositions = st.builds(
    Composition,
    order=st.sampled_from(["arrival", "similar_length"]),
    max_batch_tokens=st.sampled_from([None, 100, 250]),
    look_ahead=st.sampled_from([1, 3, 16]),
)


class NaiveBatcher:
    """An event loop as plain as can be around a strategy; it checks the laws at every step."""

    def __init__(
        self, strategy: Strategy, composition: Composition, service_s: Sequence[float]
    ) -> None:
        self.strategy, self.composition, self.service_s = strategy, composition, service_s
        self.waiting: list[WaitingItem] = []
        self.running: list[tuple[float, int, float, list[WaitingItem]]] = []  # done, worker, since
        self.left: list[WaitingItem] = []
        self.shed: list[WaitingItem] = []

    def run(self, schedule: list[WaitingItem]) -> None:
        pending, now_s = list(schedule), 0.0
        for _ in range(20 * len(schedule) + 100):
            while pending and pending[0].enqueued_s <= now_s:
                self.waiting.append(pending.pop(0))
            for ended in [one for one in self.running if one[0] <= now_s]:
                self.running.remove(ended)
                if isinstance(self.strategy, LearnsService):
                    tokens = [one.num_tokens for one in ended[3]]
                    self.strategy.observe(Served(ended[1], tokens, now_s - ended[2]))
            wake_s = self.decide(now_s, draining=not pending)
            wake_s = min([wake_s, *(one[0] for one in self.running)])
            if pending:
                wake_s = min(wake_s, pending[0].enqueued_s)
            elif not self.waiting:
                return
            assert now_s <= wake_s < INFINITY
            now_s = wake_s
        raise AssertionError("the queue does not empty")

    def decide(self, now_s: float, draining: bool) -> float:
        most = self.strategy.max_batch_size if self.strategy.joins_running else 1
        while self.waiting:
            workers = self.workers()
            if all(worker.num_running >= most for worker in workers):
                break
            seen = QueueView(WaitingQueue(self.waiting), now_s, workers, draining, self.composition)
            decision = self.strategy.decide(seen)
            assert broken_law(decision, seen, self.strategy) is None
            if isinstance(decision, WaitUntil):
                assert all(now_s < one.enqueued_s + one.max_wait_s for one in self.waiting)
                return decision.time_s
            chosen = [self.waiting[index] for index in decision.indices]
            for index in sorted(decision.indices, reverse=True):
                del self.waiting[index]
            if isinstance(decision, Shed):
                assert all(one.deadline_s < INFINITY for one in chosen)
                self.shed += chosen
                continue
            assert chosen == sorted(chosen, key=lambda one: one.priority)
            if self.composition.max_batch_tokens is not None:
                longest = max(one.num_tokens for one in chosen)
                assert longest * len(chosen) <= self.composition.max_batch_tokens
            self.left += chosen
            done_s = now_s + self.service_s[decision.worker]
            self.running.append((done_s, decision.worker, now_s, chosen))
        return INFINITY

    def workers(self) -> tuple[WorkerView, ...]:
        views = []
        for worker in range(len(self.service_s)):
            mine = [one for one in self.running if one[1] == worker]
            since_s = min((one[2] for one in mine), default=None)
            views.append(WorkerView(sum(len(one[3]) for one in mine), since_s))
        return tuple(views)


@pytest.mark.parametrize("name", choices("batching"))
@given(
    arrivals=arrivals,
    service_s=st.lists(st.sampled_from([0.0, 0.01, 0.2]), min_size=1, max_size=3),
    composition=compositions,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_laws(
    name: str,
    arrivals: list[tuple[float, int, float, float, int]],
    service_s: list[float],
    composition: Composition,
) -> None:
    strategy = shipped(name, max_batch_size=min(4, shipped(name).max_batch_size))
    schedule: list[WaitingItem] = []
    at_s = 0.0
    for gap, priority, max_wait_s, due_s, tokens in arrivals:
        at_s += gap
        schedule.append(WaitingItem(priority, tokens, at_s, max_wait_s, at_s + due_s))
    naive = NaiveBatcher(strategy, composition, service_s)
    naive.run(schedule)
    assert sorted(map(id, naive.left + naive.shed)) == sorted(map(id, schedule))
    if composition.order == "arrival":  # first in, first out within a class, exactly
        for priority in range(1, 6):
            mine = [one.enqueued_s for one in naive.left if one.priority == priority]
            assert mine == sorted(mine)


def test_the_strategies_differ_on_a_lone_item() -> None:
    seen = view([item(1.0)], 1.0)
    assert decided(Greedy(4), seen) == ([0], "idle_worker")
    assert decided(FixedSize(4, 1, 20.0, 20.0), seen) == 1.02
    assert decided(TimeBased(4, 20.0), seen) == 1.02


def test_the_strategies_differ_on_more_than_a_batch() -> None:
    """fixed_size sends a full batch at once and the rest later; time_based nothing, then all."""
    six = [item(1.0)] * 4 + [item(1.005)] * 2
    fixed, window = FixedSize(4, 1, 20.0, 20.0), TimeBased(4, 20.0)
    assert decided(fixed, view(six, 1.005)) == ([0, 1, 2, 3], "full")
    assert decided(fixed, view(six[4:], 1.005)) == 1.005 + 0.02
    assert decided(window, view(six, 1.005)) == 1.02
    assert decided(window, view(six, 1.02)) == ([0, 1, 2, 3], "window")
    assert decided(window, view(six[4:], 1.02)) == ([0, 1], "window")


def test_a_window_takes_in_who_comes_while_it_is_open_and_the_next_opens_anew() -> None:
    window = TimeBased(4, 20.0)
    assert decided(window, view([item(1.0)], 1.0)) == 1.02
    assert decided(window, view([item(1.0), item(1.019)], 1.019)) == 1.02
    assert decided(window, view([item(1.0), item(1.019)], 1.02)) == ([0, 1], "window")
    assert decided(window, view([item(1.021)], 1.021)) == pytest.approx(1.041)


def test_a_window_that_an_items_own_bound_cuts_is_over() -> None:
    window = TimeBased(2, 20.0)
    three = [item(1.0), item(1.001, max_wait_s=0.004), item(1.002)]
    assert decided(window, view(three, 1.002)) == pytest.approx(1.005)
    assert decided(window, view(three, 1.005)) == ([0, 1], "max_wait")
    assert decided(window, view(three[2:], 1.005)) == ([0], "window")
    assert decided(window, view([item(1.006)], 1.006)) == pytest.approx(1.026)


def test_windows_that_closed_behind_a_busy_worker_leave_together() -> None:
    backlog = [item(1.0), item(1.03), item(1.07)]
    assert decided(TimeBased(4, 20.0), view(backlog, 1.1)) == ([0, 1, 2], "window")


def test_fixed_size_is_bounded_by_its_oldest_item_and_by_own_bounds() -> None:
    fixed = FixedSize(4, 1, 20.0, 20.0)
    two = [item(1.0), item(1.01)]
    assert decided(fixed, view(two, 1.01)) == 1.02
    assert decided(fixed, view(two, 1.02)) == ([0, 1], "timeout")
    hasty = [item(1.0), item(1.01, max_wait_s=0.002)]
    assert decided(fixed, view(hasty, 1.01)) == 1.01 + 0.002
    assert decided(fixed, view(hasty, 1.01 + 0.002)) == ([0, 1], "max_wait")


def test_fixed_size_waits_longer_for_its_least_size() -> None:
    fixed = FixedSize(4, 2, full_wait_ms=10.0, max_wait_ms=30.0)
    assert decided(fixed, view([item(1.0)], 1.0)) == 1.03
    assert decided(fixed, view([item(1.0), item(1.005)], 1.005)) == 1.01
    assert decided(fixed, view([item(1.0), item(1.02)], 1.02)) == ([0, 1], "timeout")
    assert decided(fixed, view([item(1.0)], 1.03)) == ([0], "timeout")


def test_continuous_fills_the_worker_with_the_most_room_at_once() -> None:
    items = WaitingQueue([item(1.0, 3), item(1.0, 1), item(1.0, 2), item(1.0, 1)])
    seen = QueueView(items, 1.0, (WorkerView(3, 0.5), WorkerView(1, 0.9)), False)
    assert Continuous(4).decide(seen) == Dispatch([1, 3, 2], 1, "join")
    seen = QueueView(items, 1.0, (WorkerView(1, 0.5), IDLE), False)
    assert Continuous(2).decide(seen) == Dispatch([1, 3], 1, "idle_worker")


@pytest.mark.parametrize("strategy", [FixedSize(4, 1, 20.0, 20.0), TimeBased(4, 20.0)])
def test_draining_waits_for_no_company(strategy: Strategy) -> None:
    assert decided(strategy, view([item(1.0)], 1.001, draining=True)) == ([0], "drain")


def test_priority_first_then_arrival() -> None:
    mixed = [item(1.0, 3), item(1.1, 1), item(1.2, 3), item(1.3, 1), item(1.4, 2)]
    assert decided(Greedy(4), view(mixed, 2.0)) == ([1, 3, 4, 0], "full")


def test_the_first_idle_worker_is_taken() -> None:
    seen = QueueView(WaitingQueue([item(0.0)]), 0.0, (BUSY, IDLE, IDLE), False)
    decision = Greedy(1).decide(seen)
    assert isinstance(decision, Dispatch)
    assert decision.worker == 1


def test_none_is_one_at_a_time(choice: Callable[..., Any]) -> None:
    assert choice("batching", "none").strategy.max_batch_size == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Greedy(0), "max_batch_size: got 0; expected at least 1"),
        (lambda: FixedSize(0, 1, 1.0, 1.0), "max_batch_size: got 0; expected at least 1"),
        (
            lambda: FixedSize(4, 0, 1.0, 1.0),
            "min_batch_size: got 0; expected 1 to max_batch_size (4)",
        ),
        (
            lambda: FixedSize(4, 5, 1.0, 1.0),
            "min_batch_size: got 5; expected 1 to max_batch_size (4)",
        ),
        (lambda: FixedSize(1, 1, 0.0, -1.0), "max_wait_ms: got -1.0; expected at least 0, finite"),
        (
            lambda: FixedSize(1, 1, 2.0, 1.0),
            "full_wait_ms: got 2.0; expected 0 to max_wait_ms (1.0)",
        ),
        (lambda: Continuous(0), "max_batch_size: got 0; expected at least 1"),
        (lambda: TimeBased(0, 1.0), "max_batch_size: got 0; expected at least 1"),
        (lambda: TimeBased(1, INFINITY), "window_ms: got inf; expected at least 0, finite"),
    ],
)
def test_senseless_values_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("decision", "problem"),
    [
        (Dispatch([0], 1, ""), "worker 1 is not an idle one"),
        (Dispatch([0], 7, ""), "worker 7 of 2"),
        (Dispatch([], 0, ""), "a batch of 0 items"),
        (Dispatch([0, 1, 2], 0, ""), "a batch of 3 items; expected 1 to 2"),
        (Dispatch([1, 1], 0, ""), "indices"),
        (Dispatch([3], 0, ""), "indices"),
        (Shed([], ""), "indices"),
        (Shed([0, 3], ""), "indices"),
        (WaitUntil(1.0), "waits until 1.0"),
        (WaitUntil(INFINITY), "for ever"),
        (WaitUntil(9.0), "past an item's own bound"),
    ],
)
def test_broken_laws_are_named(decision: Dispatch | WaitUntil | Shed, problem: str) -> None:
    items = WaitingQueue([item(1.0), item(1.0), item(1.0, max_wait_s=5.0)])
    seen = QueueView(items, 1.0, (IDLE, BUSY), True)
    assert problem in str(broken_law(decision, seen, Greedy(2)))


def test_who_joins_must_find_room() -> None:
    items = WaitingQueue([item(1.0)] * 3)
    seen = QueueView(items, 1.0, (WorkerView(2, 0.5), WorkerView(3, 0.5)), False)
    assert broken_law(Dispatch([0, 1], 0, ""), seen, Continuous(4)) is None
    problem = broken_law(Dispatch([0, 1], 1, ""), seen, Continuous(4))
    assert problem == "a batch of 2 items; expected 1 to 1"
    assert broken_law(Shed([0, 1, 2], ""), seen, Continuous(4)) is None


def test_a_queue_without_room_is_refused(choice: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="max_queue_size: got 0; expected at least 1"):
        choice("batching", "greedy", max_queue_size=0)
