"""The queue against a naive one: order, bounds, deadlines, and that it forgets who left."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.batching.strategy import WaitingItem
from capibench.batching.waiting import WaitingQueue

INFINITY = float("inf")


def item(
    enqueued_s: float, priority: int = 3, max_wait_s: float = INFINITY, deadline_s: float = INFINITY
) -> WaitingItem:
    return WaitingItem(priority, 0, enqueued_s, max_wait_s, deadline_s)


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


@given(st.lists(st.integers(0, 3), min_size=200, max_size=300))
@settings(max_examples=10)
def test_many_that_expire_at_once_leave_the_others_in_order(deadlines: list[int]) -> None:
    queue = WaitingQueue(item(0.0, deadline_s=float(due)) for due in deadlines)
    for now_s in (0.0, 1.0, 2.0):
        before = list(queue)
        expired = queue.take_expired(now_s)
        assert sorted(expired) == [i for i, due in enumerate(deadlines) if due == now_s]
        assert list(queue) == [one for one in before if one.deadline_s > now_s]
    assert queue.take_all() == [i for i, due in enumerate(deadlines) if due == 3]


def test_bounds_of_items_long_gone_are_forgotten() -> None:
    """One patient item stays in front of thousands of short-lived ones with later deadlines."""
    queue = WaitingQueue([item(0.0, deadline_s=1.0)])
    for number in range(5000):
        queue.remove(queue.add(item(0.0, max_wait_s=5.0, deadline_s=2.0 + number)))
    assert len(queue._deadlines) < 100
    assert queue.earliest_deadline_s == 1.0
    assert queue.earliest_bound_s == INFINITY
