"""The exact decisions of priority: strict classes, short batches, who is given up."""

from __future__ import annotations

from queue_views import AFFINE, IDLE, decided, item, teach, view

from capibench.batching.strategies.priority import Priority
from capibench.batching.strategy import (
    Dispatch,
    QueueView,
    Served,
    Shed,
)
from capibench.batching.waiting import WaitingQueue


def strict(size: int, *, sheds: bool = False) -> Priority:
    return Priority(size, throughput_share=0.9, starvation_bound_ms=500.0, shed_unreachable=sheds)


def test_priority_is_strict_until_somebody_starves() -> None:
    priority = strict(2)
    items = [item(1.0, 5), item(1.2, 4), item(1.3, 1), item(1.4, 2), item(1.45, 1)]
    assert priority.decide(view(items, 1.46)) == Dispatch([2, 4], 0, "full")
    assert priority.decide(view(items, 1.5)) == Dispatch([0, 2], 0, "starvation")
    assert priority.decide(view(items, 1.7)) == Dispatch([0, 1], 0, "starvation")
    assert strict(8).decide(view(items, 1.5)) == Dispatch([0, 2, 4, 3, 1], 0, "starvation")


def test_priority_forms_the_shortest_batch_with_nine_tenths_of_the_rate_while_criticals_come() -> (
    None
):
    """10 + 2n ms: 32 in 74 ms are 432/s; nine tenths of it begins at 18 in 46 ms."""
    priority = strict(32)
    first, second = item(1.0, 1), item(1.0, 2)
    teach(priority, {size: AFFINE[size] for size in range(1, 32)})
    assert decided(priority, view([first] + [second] * 40, 1.0)) == (32, "full")  # 32 is not known
    teach(priority, {32: AFFINE[32]})
    assert decided(priority, view([first] + [second] * 40, 1.0)) == (18, "short")
    assert decided(priority, view([second] * 40, 1.0)) == (18, "short")  # the next may come soon
    assert decided(priority, view([first] * 25 + [second] * 40, 1.0)) == (25, "short")
    assert decided(priority, view([first] * 40, 1.0)) == (32, "full")
    assert decided(priority, view([first] + [second] * 9, 1.0)) == (10, "idle_worker")
    draining = QueueView(WaitingQueue([first] + [second] * 40), 1.0, (IDLE,), True)
    assert decided(priority, draining) == (32, "full")
    sizes = [decided(priority, view([second] * 40, 1.0)) for _ in range(150)]
    assert sizes[0] == (18, "short")
    assert sizes[-1] == (32, "full")  # none in the last hundred batches


def test_priority_looks_again_at_what_full_batches_take() -> None:
    priority = strict(32)
    teach(priority, AFFINE)
    seen = view([item(1.0, 1)] + [item(1.0, 2)] * 40, 1.0)
    reasons = []
    for _ in range(700):
        size, reason = decided(priority, seen)  # type: ignore[misc]
        priority.observe(Served(0, [0] * size, AFFINE[size]))
        reasons.append(reason)
    assert reasons.count("full") == 1


def test_priority_gives_up_at_once_whom_its_fastest_batch_would_miss() -> None:
    priority = strict(4, sheds=True)
    items = [item(1.0, 1, 1.030), item(1.0, 2, 1.009), item(1.0, 3, 1.012), item(1.0, 1, 1.001)]
    assert isinstance(priority.decide(view(items, 1.0)), Dispatch)  # nothing is known yet
    teach(priority, {4: 0.018, 1: 0.012})
    assert priority.decide(view(items, 1.0)) == Shed([1, 3], "deadline_unreachable")
    assert isinstance(priority.decide(view(items[:1] + items[2:3], 1.0)), Dispatch)


def test_priority_sends_the_largest_batch_that_is_in_time_and_gives_up_who_is_late_in_it() -> None:
    """Of 40, the first 8 have 30 ms left, too few for 32 (74 ms): the others are 32."""
    priority = strict(32, sheds=True)
    teach(priority, AFFINE)
    hasty, calm = [item(1.0, deadline_s=1.030)] * 8, [item(1.0, deadline_s=1.080)] * 32
    assert priority.decide(view(hasty + calm, 1.0)) == Shed(list(range(8)), "deadline_unreachable")
    assert decided(priority, view(calm, 1.0)) == (32, "full")
    # Six more are not enough for that: 14 in all, and eight of them end in 26 ms.
    assert decided(priority, view(hasty + calm[:6], 1.0)) == (10, "in_time")


def test_priority_gives_nobody_up_for_a_lower_class() -> None:
    priority = strict(32, sheds=True)
    teach(priority, AFFINE)
    first = item(1.0, 1, deadline_s=1.0145)  # two in 14 ms
    rest = [item(1.0, 3, deadline_s=1.08)] * 30
    assert decided(priority, view([first, *rest], 1.0)) == (2, "in_time")
    assert priority.decide(view([first, *[item(1.0, 1, deadline_s=1.08)] * 30], 1.0)) == Shed(
        [0], "deadline_unreachable"
    )
