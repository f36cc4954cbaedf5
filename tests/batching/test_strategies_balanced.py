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


def test_with_nobody_known_somebody_serves() -> None:
    made = LoadBalanced(4, explore_every=10)
    chosen = []
    for step in range(6):
        sent = made.decide(view([item(float(step))], float(step), workers(None, None)))
        assert isinstance(sent, Dispatch)
        chosen.append(sent.worker)
    assert chosen == [0, 1, 0, 1, 0, 1]


def test_a_worker_that_failed_and_has_rested_is_tried_now_and_then_beside_idle_sound_ones() -> None:
    made = LoadBalanced(4, explore_every=5)
    teach(made, dict.fromkeys((1, 2, 4), 0.010), worker=0)
    teach(made, dict.fromkeys((1, 2, 4), 0.010), worker=1)
    for rested, expected in ((False, []), (True, [4, 9, 14, 19])):
        failed = WorkerView(0, None, 3, -9.0 if rested else 2.0)  # rests 0.4 s
        given = []
        for _ in range(20):
            sent = made.decide(view([item(2.1)], 2.1, [failed, IDLE]))
            assert isinstance(sent, Dispatch)
            made.observe(Served(1, [0], 0.010))
            given.append((sent.worker, sent.reason))
        assert [step for step, (worker, _) in enumerate(given) if worker == 0] == expected
        assert all(reason == "explore" for worker, reason in given if worker == 0)


def test_where_all_fail_they_are_tried_in_turn() -> None:
    made = balanced(0.010, 0.010)
    failed_s = [0.0, 0.5]
    chosen = []
    for step in range(1, 9):
        seen = view([item(step)] * 3, step, [WorkerView(0, None, 9, since) for since in failed_s])
        sent = made.decide(seen)
        assert isinstance(sent, Dispatch)
        chosen.append((sent.worker, len(sent.indices)))
        failed_s[sent.worker] = step + 0.1
    assert chosen == [(0, 3), (1, 3)] * 4


def test_whose_bound_is_up_is_not_left_behind_for_the_sake_of_a_smaller_batch() -> None:
    made = LoadBalanced(4, explore_every=1000)
    for worker in (0, 1):
        teach(made, {1: 0.010, 2: 0.014, 4: 0.030}, worker)
    patient, due = [WaitingItem(3, 0, 1.0, bound_s, INFINITY) for bound_s in (9.0, 0.0)]
    one_busy = [WorkerView(1, 0.999), IDLE]
    made.decide(view([item(0.999)] * 2, 0.999, [IDLE, IDLE]))
    assert decided(made, view([patient] * 4, 1.0, one_busy)) == (2, "earliest_completion")
    made.decide(view([item(0.999)] * 2, 0.999, [IDLE, IDLE]))
    assert decided(made, view([due] * 4, 1.0, one_busy)) == (4, "earliest_completion")
    assert decided(made, view([due] * 4, 1.0, [IDLE, IDLE])) == (2, "earliest_completion")
