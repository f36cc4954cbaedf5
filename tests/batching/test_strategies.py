"""The laws of every batching choice, and the exact decisions that set the strategies apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from choice_files import choices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capibench.batching.laws import broken_law
from capibench.batching.strategies.fixed_size import FixedSize
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategies.time_based import TimeBased
from capibench.batching.strategy import (
    BatchStrategy,
    Dispatch,
    QueueView,
    WaitingItem,
    WaitUntil,
    WorkerView,
)
from capibench.batching.waiting import WaitingQueue

INFINITY = float("inf")
IDLE, BUSY = WorkerView(None), WorkerView(0.0)


def item(
    enqueued_s: float, priority: int = 3, max_wait_s: float = INFINITY, deadline_s: float = INFINITY
) -> WaitingItem:
    return WaitingItem(priority, 0, enqueued_s, max_wait_s, deadline_s)


def view(
    items: list[WaitingItem], now_s: float, draining: bool = False, workers: int = 1
) -> QueueView:
    return QueueView(WaitingQueue(items), now_s, (IDLE,) * workers, draining)


def decided(strategy: BatchStrategy, seen: QueueView) -> tuple[list[int], str] | float:
    decision = strategy.decide(seen)
    if isinstance(decision, WaitUntil):
        return decision.time_s
    return list(decision.indices), decision.reason


arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.004, 0.02, 0.3]),  # gap
        st.integers(1, 5),  # priority
        st.sampled_from([0.0, 0.003, 0.05, INFINITY]),  # own bound
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("name", choices("batching"))
@given(arrivals=arrivals, num_workers=st.integers(1, 3), service_s=st.sampled_from([0.0, 0.01]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_laws(
    choice: Callable[..., Any],
    name: str,
    arrivals: list[tuple[float, int, float]],
    num_workers: int,
    service_s: float,
) -> None:
    """A naive event loop around the strategy, with the laws checked at every step."""
    strategy = choice("batching", name).strategy
    strategy.max_batch_size = min(strategy.max_batch_size, 4)
    schedule: list[WaitingItem] = []
    at_s = 0.0
    for gap, priority, max_wait_s in arrivals:
        at_s += gap
        schedule.append(item(at_s, priority, max_wait_s))

    waiting: list[WaitingItem] = []
    free_s = [0.0] * num_workers
    left: dict[int, list[WaitingItem]] = {priority: [] for priority in range(1, 6)}
    pending, now_s = list(schedule), 0.0
    while pending or waiting:
        while pending and pending[0].enqueued_s <= now_s:
            waiting.append(pending.pop(0))
        draining = not pending
        wake_s = pending[0].enqueued_s if pending else INFINITY
        while waiting and any(free <= now_s for free in free_s):
            workers = tuple(IDLE if free <= now_s else BUSY for free in free_s)
            seen = QueueView(WaitingQueue(waiting), now_s, workers, draining)
            decision = strategy.decide(seen)
            assert broken_law(decision, seen, strategy.max_batch_size) is None
            if isinstance(decision, WaitUntil):
                assert all(now_s < one.enqueued_s + one.max_wait_s for one in waiting)
                wake_s = min(wake_s, decision.time_s)
                break
            batch = [waiting[index] for index in decision.indices]
            assert batch == sorted(batch, key=lambda one: one.priority)
            for index in sorted(decision.indices, reverse=True):
                del waiting[index]
            for one in batch:
                left[one.priority].append(one)
            free_s[decision.worker] = now_s + service_s
        if waiting:
            wake_s = min([wake_s, *(free for free in free_s if free > now_s)])
        assert not (pending or waiting) or wake_s < INFINITY
        now_s = max(now_s, wake_s) if wake_s < INFINITY else now_s
    assert sum(len(line) for line in left.values()) == len(schedule)
    for line in left.values():  # FIFO within a class
        assert [one.enqueued_s for one in line] == sorted(one.enqueued_s for one in line)


def test_the_strategies_differ_on_a_lone_item() -> None:
    seen = view([item(1.0)], 1.0)
    assert decided(Greedy(4), seen) == ([0], "idle_worker")
    assert decided(FixedSize(4, 20.0), seen) == 1.02
    assert decided(TimeBased(4, 20.0), seen) == 1.02


def test_the_strategies_differ_on_more_than_a_batch() -> None:
    """fixed_size sends a full batch at once and the rest later; time_based nothing, then all."""
    six = [item(1.0)] * 4 + [item(1.005)] * 2
    fixed, window = FixedSize(4, 20.0), TimeBased(4, 20.0)
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
    fixed = FixedSize(4, 20.0)
    two = [item(1.0), item(1.01)]
    assert decided(fixed, view(two, 1.01)) == 1.02
    assert decided(fixed, view(two, 1.02)) == ([0, 1], "timeout")
    hasty = [item(1.0), item(1.01, max_wait_s=0.002)]
    assert decided(fixed, view(hasty, 1.01)) == 1.01 + 0.002
    assert decided(fixed, view(hasty, 1.01 + 0.002)) == ([0, 1], "max_wait")


@pytest.mark.parametrize("strategy", [FixedSize(4, 20.0), TimeBased(4, 20.0)])
def test_draining_waits_for_no_company(strategy: BatchStrategy) -> None:
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
        (lambda: FixedSize(0, 1.0), "max_batch_size: got 0; expected at least 1"),
        (lambda: FixedSize(1, -1.0), "max_wait_ms: got -1.0; expected at least 0, finite"),
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
        (Dispatch([0], 7, ""), "worker 7 is not an idle one"),
        (Dispatch([], 0, ""), "a batch of 0 items"),
        (Dispatch([0, 1, 2], 0, ""), "a batch of 3 items"),
        (Dispatch([1, 1], 0, ""), "indices"),
        (Dispatch([3], 0, ""), "indices"),
        (WaitUntil(1.0), "waits until 1.0"),
        (WaitUntil(INFINITY), "for ever"),
        (WaitUntil(9.0), "past an item's own bound"),
    ],
)
def test_broken_laws_are_named(decision: Dispatch | WaitUntil, problem: str) -> None:
    items = WaitingQueue([item(1.0), item(1.0), item(1.0, max_wait_s=5.0)])
    assert problem in str(broken_law(decision, QueueView(items, 1.0, (IDLE, BUSY), True), 2))


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("add"),
                st.integers(1, 3),
                st.sampled_from([0.5, 2.0, INFINITY]),
                st.sampled_from([3.0, 40.0, INFINITY]),
            ),
            st.tuples(st.just("take"), st.integers(1, 4)),
            st.tuples(st.just("remove"), st.integers(0, 30)),
            st.tuples(st.just("expire")),
        ),
        max_size=80,
    )
)
def test_the_queue_agrees_with_a_naive_one(steps: list[tuple[Any, ...]]) -> None:
    queue, naive, now_s = WaitingQueue(), list[tuple[int, WaitingItem]](), 0.0
    for step in steps:
        now_s += 1.0
        if step[0] == "add":
            new = item(now_s, step[1], step[2], now_s + step[3])
            naive.append((queue.add(new), new))
        elif step[0] == "take" and naive:
            order = sorted(range(len(naive)), key=lambda i: (naive[i][1].priority, i))[: step[1]]
            assert list(queue.first(step[1])) == order
            assert queue.take(order) == [naive[i][0] for i in order]
            naive = [one for i, one in enumerate(naive) if i not in order]
        elif step[0] == "remove" and naive:
            ticket, _ = naive.pop(step[1] % len(naive))
            queue.remove(ticket)
            assert ticket not in queue
        elif step[0] == "expire":
            gone = {ticket for ticket, one in naive if one.deadline_s <= now_s}
            assert set(queue.take_expired(now_s)) == gone
            naive = [(ticket, one) for ticket, one in naive if ticket not in gone]
        assert list(queue) == [one for _, one in naive]
        bounds = [one.enqueued_s + one.max_wait_s for _, one in naive]
        assert queue.earliest_bound_s == min(bounds, default=INFINITY)
        deadlines = [one.deadline_s for _, one in naive]
        assert queue.earliest_deadline_s == min(deadlines, default=INFINITY)
    assert queue.take_all() == [ticket for ticket, _ in naive]


def test_bounds_of_items_long_gone_are_forgotten() -> None:
    """One patient item stays in front of thousands of short-lived ones with later deadlines."""
    queue = WaitingQueue([item(0.0, deadline_s=1.0)])
    for number in range(5000):
        queue.remove(queue.add(item(0.0, max_wait_s=5.0, deadline_s=2.0 + number)))
    assert len(queue._deadlines) < 100
    assert queue.earliest_deadline_s == 1.0
    assert queue.earliest_bound_s == INFINITY


def test_a_queue_without_room_is_refused(choice: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="max_queue_size: got 0; expected at least 1"):
        choice("batching", "greedy", max_queue_size=0)
