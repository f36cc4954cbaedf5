"""What strategies learn: seconds by size and length, and how fast requests come."""

from __future__ import annotations

import random

import pytest

from capibench.batching.forecast import ArrivalForecast
from capibench.batching.learned_service import LearnedService


def taught(seconds: dict[int, float], times: int = 3, longest: int = 0) -> LearnedService:
    learned = LearnedService()
    for size, value in seconds.items():
        for _ in range(times):
            learned.observe(size, longest, value)
    return learned


def test_a_table_and_no_line_and_not_monotone() -> None:
    seconds = {1: 0.012, 8: 0.080, 16: 0.030, 17: 0.200}
    learned = taught(seconds)
    assert {size: learned.seconds(size, 0) for size in seconds} == seconds


def test_an_unknown_size_lies_between_its_nearest_neighbours_alone() -> None:
    learned = taught({1: 0.010, 4: 0.040, 8: 0.020, 16: 0.500})
    assert learned.seconds(2, 0) == pytest.approx(0.020)
    assert learned.seconds(6, 0) == pytest.approx(0.030)
    assert learned.seconds(32, 0) == 0.500  # hopeful, so that it gets tried
    assert learned.shortest_s() == 0.010


def test_an_outlier_does_not_move_a_known_size() -> None:
    learned = taught({4: 0.020}, times=5)
    learned.observe(4, 0, 3.0)
    learned.observe(4, 0, 3.0)
    assert learned.seconds(4, 0) == 0.020


def test_one_batch_leans_on_its_neighbours() -> None:
    learned = taught({2: 0.010, 6: 0.010})
    learned.observe(4, 0, 0.100)
    assert learned.seconds(4, 0) == pytest.approx((0.100 + 2 * 0.010) / 3)
    learned.observe(4, 0, 0.100)
    learned.observe(4, 0, 0.100)
    assert learned.seconds(4, 0) == 0.100


def test_it_forgets_a_machine_that_has_changed() -> None:
    learned = taught({4: 0.020}, times=50)
    for _ in range(8):
        learned.observe(4, 0, 0.090)
    assert learned.seconds(4, 0) == 0.090


def test_length_matters_by_bucket_and_carries_over_to_other_sizes() -> None:
    learned = LearnedService()
    for _ in range(4):
        for size in (1, 2, 4):
            learned.observe(size, 100, 0.010 * size)
        learned.observe(2, 1000, 0.100)
        learned.observe(1, 1000, 0.050)
    assert learned.seconds(2, 100) == pytest.approx(0.020)
    assert learned.seconds(2, 900) == pytest.approx(0.100)  # the bucket of 512 to 1023
    assert learned.seconds(4, 1000) == pytest.approx(0.200)  # in proportion to the other row
    assert learned.seconds(4, 4000) == learned.seconds(4, 1000)  # the nearest length


def test_hope_is_for_sizes_that_may_be_the_best_of_all() -> None:
    learned = taught({1: 0.012, 32: 0.152})
    assert learned.hopeful(range(1, 33)) == 6  # farthest from what ran; at 12 ms it would be best
    learned.observe(6, 0, 0.026)
    assert learned.hopeful(range(1, 33)) == 6  # it is the best known, by one batch
    learned.observe(6, 0, 0.026)
    learned.observe(6, 0, 0.026)
    assert learned.hopeful(range(1, 33)) == 14
    learned.observe(14, 0, 0.140)
    assert learned.hopeful(range(15, 33)) is None  # at 140 ms, 31 would be worse than 6
    assert learned.hopeful(range(7, 33)) == 9


def test_what_is_hardly_known() -> None:
    learned = taught({1: 0.010, 2: 0.010})
    assert learned.hardly_known([1, 2]) is None
    learned.observe(3, 0, 0.010)
    assert learned.hardly_known(range(1, 4)) == 3
    assert learned.hardly_known(range(1, 5)) == 4
    for _ in range(500):
        learned.observe(2, 0, 0.010)
    assert learned.hardly_known([1, 2]) == 1


def test_without_batches_it_is_false_and_nothing_is_short() -> None:
    learned = LearnedService()
    assert not learned
    assert learned.shortest_s() == 0.0


def test_the_forecast_finds_the_rate_of_poisson_arrivals_and_sees_it_end() -> None:
    source, forecast = random.Random(5), ArrivalForecast(window_s=1.0)
    assert forecast.rate_per_s == 0.0
    arrivals, at_s = [], 0.0
    while at_s < 5.0:
        at_s += source.expovariate(300.0)
        arrivals.append(at_s)
    waiting = 0
    for step in range(1, 251):  # decisions every 20 ms, at which half of the queue leaves
        now_s = step * 0.02
        waiting += sum(now_s - 0.02 < one <= now_s for one in arrivals)
        if waiting:
            forecast.saw(waiting, now_s, now_s)
            waiting -= waiting // 2
            forecast.left(waiting)
    assert forecast.rate_per_s == pytest.approx(300.0, rel=0.15)
    forecast.saw(waiting, 5.0, 5.5)
    assert forecast.rate_per_s == pytest.approx(2.0)  # nobody for half a second


def test_the_forecast_of_what_came_at_once_is_not_infinite() -> None:
    forecast = ArrivalForecast(window_s=1.0)
    forecast.saw(600, 0.0, 0.0)
    assert forecast.rate_per_s == 0.0
    forecast.left(568)
    forecast.saw(570, 0.08, 0.1)
    assert forecast.rate_per_s == pytest.approx(20.0)
