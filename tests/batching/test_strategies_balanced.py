"""The exact decisions of load_balanced: which worker, and which one not."""

from __future__ import annotations

import pytest
from queue_views import IDLE, INFINITY, decided, item, teach, view

from capibench.batching.strategies.load_balanced import LoadBalanced
from capibench.batching.strategy import (
    Dispatch,
    Served,
    WaitingItem,
    WaitUntil,
    WorkerView,
)


def workers(*busy_since_s: float | None) -> list[WorkerView]:
    return [WorkerView(0 if since is None else 1, since) for since in busy_since_s]


def balanced(fast_s: float, slow_s: float) -> LoadBalanced:
    made = LoadBalanced(4, explore_every=1000)
    teach(made, dict.fromkeys((1, 2, 4), fast_s), worker=0)
    teach(made, dict.fromkeys((1, 2, 4), slow_s), worker=1)
    return made


def test_a_lone_item_waits_for_the_fast_worker_beside_an_idle_slow_one() -> None:
    made = balanced(0.010, 0.100)
    assert made.decide(view([item(1.0)], 1.0, workers(None, None))) == Dispatch(
        range(1), 0, "earliest_completion"
    )
    assert made.decide(view([item(1.001)], 1.001, workers(1.0, None))) == WaitUntil(1.010)


def test_a_long_queue_uses_the_slow_worker_too() -> None:
    made = balanced(0.010, 0.025)
    made.decide(view([item(1.0)], 1.0, workers(None, None)))
    decision = made.decide(view([item(1.001)] * 16, 1.001, workers(1.0, None)))
    assert isinstance(decision, Dispatch)
    assert (decision.worker, len(decision.indices)) == (1, 4)


def test_a_worker_that_hangs_is_waited_for_ever_less() -> None:
    made = balanced(0.010, 0.100)
    made.decide(view([item(1.0)], 1.0, workers(None, None)))
    waiting, hung = [item(1.001)], workers(1.0, None)
    assert decided(made, view(waiting, 1.020, hung)) == pytest.approx(1.030)  # as overdue again
    assert decided(made, view(waiting, 1.200, hung)) == (1, "earliest_completion")


def test_idle_workers_share_what_waits() -> None:
    made = LoadBalanced(4, explore_every=1000)
    for worker in (0, 1):
        teach(made, {1: 0.012, 2: 0.014, 4: 0.018}, worker)
    decision = made.decide(view([item(1.0)] * 4, 1.0, workers(None, None)))
    assert decision == Dispatch(range(2), 0, "earliest_completion")
    decision = made.decide(view([item(1.0)] * 2, 1.0, workers(1.0, None)))
    assert decision == Dispatch(range(2), 1, "earliest_completion")


def test_with_a_backlog_batches_have_the_size_of_the_best_rate() -> None:
    """Two times 16 in 40 ms: 8 of them first, in 24 ms, lowers the mean, and the rate."""
    made = LoadBalanced(16, explore_every=1000)
    for worker in (0, 1):
        teach(made, {1: 0.012, 4: 0.016, 8: 0.024, 16: 0.040}, worker)
    for waiting, size in ((32, 8), (200, 16)):
        decision = made.decide(view([item(1.0)] * waiting, 1.0, workers(None, None)))
        assert isinstance(decision, Dispatch)
        assert len(decision.indices) == size


def test_unknown_workers_are_tried_and_hardly_known_ones_now_and_then() -> None:
    made = LoadBalanced(4, explore_every=5)
    assert decided(made, view([item(1.0)] * 4, 1.0, workers(None, None))) == (2, "unknown_worker")
    made.observe(Served(0, [0, 0], 0.010))
    sent = made.decide(view([item(1.0)] * 4, 1.1, workers(None, None)))
    assert isinstance(sent, Dispatch)
    assert (sent.worker, sent.reason) == (1, "unknown_worker")
    made.observe(Served(1, [0, 0], 0.900))  # its first batch was slow: cold
    chosen = []
    for step in range(12):
        sent = made.decide(view([item(2.0 + step)], 2.0 + step, workers(None, None)))
        assert isinstance(sent, Dispatch)
        chosen.append((sent.worker, sent.reason))
        made.observe(Served(sent.worker, [0], 0.010))
    assert (1, "explore") in chosen


def test_a_worker_whose_batches_fail_is_not_fed_more_of_them() -> None:
    made = LoadBalanced(4, explore_every=10)
    given = {0: 0, 1: 0}
    for step in range(100):
        sent = made.decide(view([item(float(step))], float(step), workers(None, None)))
        assert isinstance(sent, Dispatch)
        given[sent.worker] += 1
        if sent.worker == 0:  # worker 1 never brings a batch back
            made.observe(Served(0, [0], 0.010))
    assert 5 <= given[1] <= 11


def test_with_nobody_known_somebody_serves() -> None:
    made = LoadBalanced(4, explore_every=10)
    chosen = []
    for step in range(6):
        sent = made.decide(view([item(float(step))], float(step), workers(None, None)))
        assert isinstance(sent, Dispatch)
        chosen.append(sent.worker)
    assert chosen == [0, 1, 0, 1, 0, 1]


def failing(num_failures: int, since_s: float | None = None) -> WorkerView:
    return WorkerView(0 if since_s is None else 1, since_s, num_failures)


def test_a_known_worker_that_fails_is_marked_down_for_longer_and_longer() -> None:
    made = balanced(0.010, 0.010)
    given = []
    for step in range(60):
        num_failures = given.count(0)
        sent = made.decide(view([item(0.1 * step)], 0.1 * step, [failing(num_failures), IDLE]))
        assert isinstance(sent, Dispatch)
        given.append(sent.worker)
        if sent.worker == 1:
            made.observe(Served(1, [0], 0.010))
    assert [step for step, worker in enumerate(given) if worker == 0] == [
        0,
        3,
        8,
        17,
        34,  # 2, 4, 8 and 16 others between them
    ]


def test_beside_a_marked_down_worker_one_waits_for_the_sound_one_and_past_the_own_bound() -> None:
    made = balanced(0.010, 0.050)
    waiting = [WaitingItem(3, 0, 1.0, 0.001, INFINITY)]
    assert isinstance(made.decide(view(waiting, 1.0, [IDLE, IDLE])), Dispatch)  # to worker 0
    seen = view(waiting, 1.002, [failing(1), WorkerView(1, 0.999)])
    assert isinstance(made.decide(seen), WaitUntil)
    # It hangs. After as many seconds as batches, the other is tried again.
    assert decided(made, view(waiting, 3.1, [failing(1), WorkerView(1, 0.999)])) == (
        1,
        "earliest_completion",
    )


def test_where_all_fail_they_are_tried_in_turn() -> None:
    made = balanced(0.010, 0.010)
    chosen = []
    for step in range(8):
        seen = view([item(float(step))] * 3, float(step), [failing(9), failing(9)])
        sent = made.decide(seen)
        assert isinstance(sent, Dispatch)
        chosen.append(sent.worker)
    assert {chosen[0], chosen[1]} == {0, 1}
    assert chosen[2:] == chosen[:-2]
