"""The exact decisions of the strategies that learn: adaptive, and what all of them refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from queue_views import AFFINE, INFINITY, decided, item, shipped, teach, view

from capibench.batching.learned_service import sizes_to_weigh
from capibench.batching.strategies.adaptive import Adaptive
from capibench.batching.strategy import (
    Dispatch,
    Served,
    Shed,
    WaitingItem,
)


def test_adaptive_knows_nothing_and_sends_what_waits() -> None:
    assert decided(shipped("adaptive"), view([item(1.0)] * 5, 1.0)) == (5, "unknown")
    assert decided(shipped("adaptive", min_batch_size=6), view([item(1.0)] * 5, 1.0)) == 1.05


def test_adaptive_is_greedy_where_size_brings_rate() -> None:
    adaptive = shipped("adaptive")
    teach(adaptive, AFFINE)
    assert decided(adaptive, view([item(1.0)], 1.0)) == (1, "best_now")
    assert decided(adaptive, view([item(1.0)] * 7, 1.0)) == (7, "best_now")
    assert decided(adaptive, view([item(1.0)] * 50, 1.0)) == (32, "full")


def test_adaptive_splits_where_two_batches_serve_more_per_second() -> None:
    adaptive = shipped("adaptive")
    teach(adaptive, {**AFFINE, **dict.fromkeys(range(17, 33), 0.2)})
    assert decided(adaptive, view([item(1.0)] * 20, 1.0)) == (
        13,
        "split",
    )  # 13 and 7 as good as 16 and 4
    assert decided(adaptive, view([item(1.0)] * 60, 1.0)) == (16, "split")


def test_adaptive_splits_where_that_saves_somebody() -> None:
    adaptive = shipped("adaptive", objective_ms=100.0, max_wait_ms=9999.0)
    teach(adaptive, AFFINE)
    old, new = [item(0.919)] * 4, [item(1.0)] * 12  # 19 ms left, against 42 ms for all at once
    assert decided(adaptive, view(old + new, 1.0)) == (4, "split")
    assert decided(adaptive, view([item(0.5)] * 4 + new, 1.0)) == (16, "best_now")  # too late


def test_adaptive_saves_nobody_at_the_price_of_a_growing_queue() -> None:
    adaptive = shipped("adaptive", objective_ms=100.0, max_wait_ms=9999.0)
    teach(adaptive, AFFINE)
    for step in range(40):  # 32 every 80 ms: 400/s, which only large batches serve
        assert decided(adaptive, view([item(step * 0.08)] * 32, step * 0.08)) == (32, "full")
    old, new = [item(3.119)] * 4, [item(3.2)] * 12
    assert decided(adaptive, view(old + new, 3.2)) == (16, "best_now")


def test_adaptive_waits_for_the_size_that_is_cheap() -> None:
    """Seven take 50 ms and eight 20 ms: with the eighth due in a millisecond, all gain."""
    adaptive = shipped("adaptive")
    teach(adaptive, {**AFFINE, **dict.fromkeys(range(1, 8), 0.05), 8: 0.020})
    for step in range(20):  # a thousand a second
        assert decided(adaptive, view([item(step * 0.008)] * 8, step * 0.008)) == (8, "best_now")
    seven = [item(0.160)] * 7
    assert decided(adaptive, view(seven, 0.160)) == pytest.approx(0.161, abs=2e-4)
    assert decided(shipped("adaptive"), view(seven, 0.160)) == (7, "unknown")


def test_adaptive_does_not_wait_when_somebody_would_miss_the_objective() -> None:
    adaptive = shipped("adaptive", objective_ms=51.0)
    teach(adaptive, {**AFFINE, **dict.fromkeys(range(1, 8), 0.05), 8: 0.0505})
    for step in range(20):
        decided(adaptive, view([item(step * 0.008)] * 8, step * 0.008))
    assert decided(adaptive, view([item(0.160)] * 7, 0.160)) == (7, "best_now")


def test_adaptive_waits_for_its_least_size_but_not_for_ever() -> None:
    adaptive = shipped("adaptive", min_batch_size=4, max_wait_ms=30.0)
    teach(adaptive, AFFINE)
    assert decided(adaptive, view([item(1.0)] * 3, 1.0)) == 1.03
    assert decided(adaptive, view([item(1.0)] * 4, 1.01)) == (4, "best_now")
    assert decided(adaptive, view([item(1.0)] * 3, 1.03)) == (3, "max_wait")


def test_adaptive_waits_for_the_size_that_reaches_the_target() -> None:
    adaptive = shipped("adaptive", target_per_s=250.0, max_wait_ms=30.0)  # five take 20 ms
    teach(adaptive, AFFINE)
    assert decided(adaptive, view([item(1.0)] * 4, 1.0)) == 1.03
    assert decided(adaptive, view([item(1.0)] * 5, 1.01)) == (5, "best_now")
    assert decided(adaptive, view([item(1.0)] * 4, 1.03)) == (4, "max_wait")
    tight = shipped("adaptive", target_per_s=250.0, max_wait_ms=30.0, objective_ms=35.0)
    teach(tight, AFFINE)  # five of them need 20 of the 35 ms
    assert decided(tight, view([item(1.0)] * 4, 1.0)) == pytest.approx(1.015)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_adaptive_spends_little_on_trials(share: float) -> None:
    """Sixty-four wait, all late; 32 at once are best, which is known once all others are."""
    adaptive = shipped("adaptive", explore_share=share)
    teach(adaptive, {1: AFFINE[1], 32: AFFINE[32]})
    served_s, cost_s, tried = 0.0, 0.0, set()
    for step in range(400):
        size, reason = decided(adaptive, view([item(step * 0.1)] * 64, 5.0 + step * 0.1))  # type: ignore[misc]
        adaptive.observe(Served(0, [0] * size, AFFINE[size]))
        served_s += AFFINE[size]
        cost_s += AFFINE[size] - size * AFFINE[32] / 32
        if reason == "explore":
            tried.add(size)
    assert cost_s <= 0.1 + share * served_s
    assert len(tried) > 20 if share else not tried
    assert (size, reason) == (32, "full")


def test_adaptive_goes_on_with_trials_after_one_that_crashed() -> None:
    adaptive = shipped("adaptive", explore_share=0.05)
    teach(adaptive, {1: AFFINE[1], 32: AFFINE[32]})
    tried = []
    for step in range(200):
        size, reason = decided(adaptive, view([item(step * 0.1)] * 64, 5.0 + step * 0.1))  # type: ignore[misc]
        if reason == "explore":
            tried.append(size)
            if len(tried) == 3:
                continue  # nothing came of it, so nothing is observed
        adaptive.observe(Served(0, [0] * size, AFFINE[size]))
    assert len(set(tried[3:]) - {tried[2]}) > 10


def test_adaptive_weighs_a_bounded_number_of_sizes() -> None:
    assert sizes_to_weigh(3, 64) == range(3, 65)
    assert sizes_to_weigh(60, 130) == [*range(60, 65), *range(72, 129, 8), 130]
    assert len(sizes_to_weigh(1, 4096)) == 64 + 8 * 6
    assert set(sizes_to_weigh(1, 1000)) - {1000} < set(sizes_to_weigh(1, 4096))


def test_adaptive_finds_a_step_in_the_table() -> None:
    seconds = {size: AFFINE[size] + (0.1 if size > 19 else 0.0) for size in range(1, 33)}
    adaptive = shipped("adaptive")
    teach(adaptive, {1: seconds[1], 32: seconds[32]})
    sizes = []
    for step in range(30):
        size, _ = decided(adaptive, view([item(step * 0.1)] * 64, 5.0 + step * 0.1))  # type: ignore[misc]
        adaptive.observe(Served(0, [0] * size, seconds[size]))
        sizes.append(size)
    assert sum(size > 19 for size in sizes) <= 6
    assert all(size <= 19 for size in sizes[-10:])
    assert sum(size >= 17 for size in sizes[-10:]) >= 8


def test_adaptive_finds_a_dip_between_known_sizes() -> None:
    seconds = {**AFFINE, 12: 0.015}
    adaptive = shipped("adaptive", explore_share=0.05)
    teach(adaptive, {1: seconds[1], 8: seconds[8], 32: seconds[32]})
    for step in range(400):
        size, _ = decided(adaptive, view([item(step * 0.1)] * 64, 5.0 + step * 0.1))  # type: ignore[misc]
        adaptive.observe(Served(0, [0] * size, seconds[size]))
    assert size == 12


def test_adaptive_looks_at_lengths() -> None:
    """Eight short ones and eight long ones: padded together they cost far more than apart."""
    adaptive = shipped("adaptive")
    for _ in range(3):
        for size in (1, 4, 8, 16):
            for tokens in (10, 1000):
                seconds = 0.001 + size * tokens * 1e-5
                adaptive.observe(Served(0, [tokens] * size, seconds))
    short = [WaitingItem(3, 10, 1.0, INFINITY, INFINITY)] * 8
    long = [WaitingItem(3, 1000, 1.0, INFINITY, INFINITY)] * 8
    assert decided(adaptive, view(short + long, 1.0)) == (8, "split")


def test_adaptive_gives_up_what_cannot_be_reached() -> None:
    adaptive = shipped("adaptive")
    teach(adaptive, AFFINE)
    lost, kept = item(1.0, deadline_s=1.011), item(1.0, deadline_s=1.013)
    assert adaptive.decide(view([kept, lost], 1.0)) == Shed([1], "deadline_unreachable")
    patient = shipped("adaptive", shed_unreachable=False)
    teach(patient, AFFINE)
    assert isinstance(patient.decide(view([kept, lost], 1.0)), Dispatch)


def test_adaptive_gives_up_who_is_late_in_the_batch_that_is_best_for_all() -> None:
    late = [item(1.0, deadline_s=1.020)] * 8 + [item(1.0)] * 8  # eight take 26 ms, three 16
    calm = shipped("adaptive", target_per_s=150.0)
    teach(calm, AFFINE)
    assert decided(calm, view(late, 1.0)) == (5, "split")  # saves five of them
    busy = shipped("adaptive", target_per_s=380.0)  # a rate that only batches of 16 reach
    teach(busy, AFFINE)
    assert busy.decide(view(late, 1.0)) == Shed(list(range(8)), "deadline_unreachable")
    assert decided(busy, view(late[8:], 1.0)) == 1.05  # eight are too few for the target


@pytest.mark.parametrize("name", ["adaptive", "priority"])
def test_a_slow_start_does_not_make_it_shed_for_ever(name: str) -> None:
    strategy = shipped(name)
    for _ in range(3):
        strategy.observe(Served(0, [0], 2.0))  # cold
    served = 0
    for step in range(40):
        hasty = item(float(step), deadline_s=step + 0.5)
        if isinstance(strategy.decide(view([hasty], float(step))), Dispatch):
            served += 1
            strategy.observe(Served(0, [0], 0.010))
    assert served > 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shipped("adaptive", max_batch_size=0), "max_batch_size: got 0; expected at"),
        (
            lambda: shipped("adaptive", min_batch_size=33),
            "min_batch_size: got 33; expected 1 to max_batch_size (32)",
        ),
        (lambda: shipped("adaptive", objective_ms=0.0), "objective_ms: got 0.0; expected above 0"),
        (lambda: shipped("adaptive", target_per_s=-1.0), "target_per_s: got -1.0; expected above"),
        (lambda: shipped("adaptive", max_wait_ms=-1.0), "max_wait_ms: got -1.0; expected at least"),
        (
            lambda: shipped("adaptive", forecast_window_ms=0.0),
            "forecast_window_ms: got 0.0; expected above 0",
        ),
        (lambda: shipped("adaptive", explore_share=1.0), "explore_share: got 1.0; expected 0 to"),
        (lambda: shipped("priority", max_batch_size=0), "max_batch_size: got 0; expected at"),
        (
            lambda: shipped("priority", throughput_share=0.0),
            "throughput_share: got 0.0; expected above 0, at most 1",
        ),
        (
            lambda: shipped("priority", starvation_bound_ms=0.0),
            "starvation_bound_ms: got 0.0; expected above 0",
        ),
        (
            lambda: shipped("priority", starved_share=0.0),
            "starved_share: got 0.0; expected above 0, at most 1",
        ),
        (lambda: shipped("load_balanced", max_batch_size=0), "max_batch_size: got 0; expected at"),
        (lambda: shipped("load_balanced", explore_every=0), "explore_every: got 0; expected at"),
    ],
)
def test_senseless_values_are_refused(make: Callable[[], Adaptive], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value)
