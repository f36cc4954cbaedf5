"""The exact decisions of priority: strict classes, short batches, who is given up."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from queue_views import AFFINE, IDLE, INFINITY, decided, item, shipped, teach, view

from capibench.batching.composition import Composition
from capibench.batching.strategies.priority import Priority
from capibench.batching.strategy import (
    Dispatch,
    QueueView,
    Served,
    Shed,
    WaitingItem,
)
from capibench.batching.waiting import WaitingQueue


def strict(size: int, *, sheds: bool = False, share: float = 0.5) -> Priority:
    return Priority(
        size,
        throughput_share=0.9,
        starvation_bound_ms=500.0,
        starved_share=share,
        shed_unreachable=sheds,
    )


def test_priority_is_strict_until_somebody_starves_and_then_for_the_rest_of_a_batch() -> None:
    items = [item(1.0, 5), item(1.2, 4), item(1.3, 1), item(1.4, 2), item(1.45, 1)]
    assert strict(2).decide(view(items, 1.46)) == Dispatch([2, 4], 0, "full")
    assert strict(2).decide(view(items, 1.5)) == Dispatch([2, 0], 0, "starvation")
    assert strict(2).decide(view(items, 1.7)) == Dispatch([2, 0], 0, "starvation")  # not the other
    assert strict(4).decide(view(items, 1.7)) == Dispatch([2, 4, 1, 0], 0, "starvation")
    assert strict(8).decide(view(items, 1.5)) == Dispatch([2, 4, 3, 1, 0], 0, "starvation")


@pytest.mark.parametrize(("size", "share"), [(1, 0.25), (3, 0.25), (32, 0.25), (8, 0.1), (1, 1.0)])
def test_of_all_places_the_starved_get_their_share(size: int, share: float) -> None:
    """Of criticals there are always enough for all places."""
    priority = strict(size, share=share)
    items = [item(0.0, 5)] * 200 + [item(9.0, 1)] * 64
    places, starved = 0, 0
    while places < 400:
        decision = priority.decide(view(items, 9.0))
        assert isinstance(decision, Dispatch)
        places += len(decision.indices)
        starved += sum(index < 200 for index in decision.indices)
        assert starved == int(share * places + 1e-9)


def test_what_the_starved_could_not_use_is_not_saved_up_for_them() -> None:
    priority = strict(8, share=0.25)
    for _ in range(20):  # one of the two places is used
        decided(priority, view([item(0.0, 5)] + [item(9.0, 1)] * 64, 9.0))
    decision = priority.decide(view([item(0.0, 5)] * 9 + [item(9.0, 1)] * 64, 9.0))
    assert isinstance(decision, Dispatch)
    assert sum(index < 9 for index in decision.indices) == 3  # its two, and the rest of the last


def test_who_has_a_deadline_is_not_starved() -> None:
    items = [item(0.0, 5, 99.0), item(0.1, 5), item(0.2, 5, 99.0), item(9.0, 1), item(9.0, 1)]
    assert strict(2).decide(view(items, 9.0)) == Dispatch([3, 1], 0, "starvation")
    assert strict(2).decide(view(items[2:], 9.0)) == Dispatch([1, 2], 0, "full")


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


def test_batches_are_not_shortened_for_a_first_class_whose_deadlines_leave_time() -> None:
    """Who comes as a batch of 32 begins is answered by the next, after 74 + 12 ms."""
    for patience_s, size in ((0.200, 32), (0.087, 32), (0.070, 24), (0.050, 18)):
        priority = strict(32)
        teach(priority, AFFINE)
        first = item(1.0, 1, deadline_s=1.0 + patience_s)
        assert decided(priority, view([first] + [item(1.0, 2)] * 40, 1.0))[0] == size  # type: ignore[index]
    mixed = [item(1.0, 1, deadline_s=1.2), item(1.0, 1)] + [item(1.0, 2)] * 40
    assert decided(priority, view(mixed, 1.0)) == (18, "short")


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


def test_nobody_is_given_up_for_a_batch_that_the_token_budget_forbids() -> None:
    """Four of 25 tokens fit into 100, and end in 18 ms: only the first, due in 15, is too early."""
    priority = strict(32, sheds=True)
    for size in (1, 2, 3, 4):
        for _ in range(3):
            priority.observe(Served(0, [25] * size, AFFINE[size]))
    due_s = [1.015] + [1.030] * 8 + [1.080] * 32
    items = [WaitingItem(3, 25, 1.0, INFINITY, due) for due in due_s]
    budget = Composition("arrival", max_batch_tokens=100, look_ahead=1)
    seen = QueueView(WaitingQueue(items), 1.0, (IDLE,), False, budget)
    assert priority.decide(seen) == Shed([0], "deadline_unreachable")
    seen = QueueView(WaitingQueue(items[1:]), 1.0, (IDLE,), False, budget)
    assert priority.decide(seen) == Dispatch([0, 1, 2, 3], 0, "full")


class Counting(WaitingQueue):
    """Counts the items that are looked at."""

    num_looked_at = 0

    def __getitem__(self, index: int, /) -> WaitingItem:
        self.num_looked_at += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[WaitingItem]:
        self.num_looked_at += len(self)
        return super().__iter__()

    def first(self, count: int) -> Sequence[int]:
        indices = super().first(count)
        self.num_looked_at += len(indices)
        return indices


@pytest.mark.parametrize("name", ["adaptive", "priority", "greedy", "fixed_size", "load_balanced"])
def test_a_decision_looks_at_no_more_items_the_longer_the_queue_is(name: str) -> None:
    """Some are lost, some late in a full batch, some starved: whatever there is to look for."""
    looked_at = []
    for length in (2_000, 10_000):
        source, strategy, most = random.Random(1), shipped(name), 0
        if name in ("adaptive", "priority"):
            teach(strategy, AFFINE)
        waiting = Counting(
            WaitingItem(
                source.randint(1, 5),
                0,
                number * 1e-6,
                INFINITY,
                INFINITY if number % 3 == 0 else 3.0 + source.choice([0.005, 0.03, 0.1, 9.0]),
            )
            for number in range(length)
        )
        for _ in range(20):
            waiting.num_looked_at = 0
            decision = strategy.decide(QueueView(waiting, 3.0, (IDLE,), False))
            most = max(most, waiting.num_looked_at)
            assert isinstance(decision, Dispatch | Shed)
            waiting.take(decision.indices)
        looked_at.append(most)
    assert looked_at[1] <= looked_at[0] + 100  # by bisection, at most
    assert looked_at[1] <= 3_000
