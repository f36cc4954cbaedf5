"""What the strategies promise under load, in virtual time: near the oracle, never far behind
`greedy`, back to normal after a burst. Service takes 10 + 2n ms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_files import choices

from capibench.batching.offline import Array
from capibench.batching.oracle import oracle
from capibench.batching.service_table import ServiceTable
from capibench.batching.simulate import Offered, Outcome, simulate
from capibench.batching.strategies.continuous import Continuous
from capibench.batching.strategies.greedy import Greedy
from capibench.load.traces import read_trace

AZURE = (
    Path(__file__).parents[3] / "shared/data/traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv"
)
STRATEGIES = [name for name in choices("batching") if name != "none"]  # no batching is no strategy
LOADS = (0.05, 0.5, 0.9, 1.2)
MAX_BATCH_SIZE = 32  # no shipped strategy forms larger ones
SERVICE = ServiceTable.affine(0.010, 0.002, MAX_BATCH_SIZE, num_steps=8)
OBJECTIVE_S = 2.5 * SERVICE.batch_s[-1]


def offered_at(load: float, arrivals_s: Array) -> Offered:
    """The same arrivals, faster or slower, so that they ask for `load` of the capacity."""
    began_s = arrivals_s - arrivals_s[0]
    rate_per_s = len(began_s) / float(began_s[-1])
    return Offered.alike(began_s * rate_per_s / (load * SERVICE.capacity_per_s), OBJECTIVE_S)


@cache
def made_arrivals() -> Array:
    """Like a trace of a day: a rate that swings, and now and then a burst."""
    rng = np.random.default_rng(4)
    gaps = rng.exponential(1.0, 400) / (1.0 + 0.5 * np.sin(np.arange(400) / 50))
    gaps[rng.random(400) < 0.03] *= 6
    gaps[240:280] /= 3
    return np.cumsum(gaps)


@cache
def recorded_arrivals() -> Array:
    """From the middle of an hour of conversations with a served model."""
    rows = read_trace(str(AZURE), "azure").rows[8000:8400]
    return np.array([row.arrival_s for row in rows])


TRACES = [
    pytest.param(made_arrivals, id="made"),
    pytest.param(
        recorded_arrivals,
        id="azure",
        marks=pytest.mark.skipif(not AZURE.exists(), reason="the Azure trace is not here"),
    ),
]


@pytest.fixture
def run(choice: Callable[..., Any]) -> Callable[[str, Offered], Outcome]:
    def simulated(name: str, offered: Offered) -> Outcome:
        return simulate(offered, choice("batching", name).strategy, SERVICE)

    return simulated


@pytest.mark.parametrize("arrivals", TRACES)
def test_nobody_is_half_as_good_as_greedy_and_somebody_is_near_the_oracle(
    run: Callable[[str, Offered], Outcome], arrivals: Callable[[], Array]
) -> None:
    for load in LOADS:
        offered = offered_at(load, arrivals())
        good = {name: run(name, offered).num_good for name in STRATEGIES}
        best = oracle(offered.arrival_s, offered.due_s, SERVICE).exact
        assert best is not None
        assert max(good.values()) >= 0.9 * best, (load, good, best)
        behind = {name: n for name, n in good.items() if n < 0.5 * good["greedy"]}
        assert not behind, (load, good)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_burst_of_ten_times_the_load_is_soon_over(
    run: Callable[[str, Offered], Outcome], name: str
) -> None:
    """Half the capacity, ten times that for half a second, then half again. A minute is allowed
    after a longer one, which the study has (experiments/004-batching)."""
    rng = np.random.default_rng(1)
    rate = 0.5 * SERVICE.capacity_per_s
    before_s = rng.uniform(0.0, 2.0, int(2 * rate))
    burst_s = rng.uniform(2.0, 2.5, int(0.5 * 10 * rate))
    after_s = rng.uniform(2.5, 7.5, int(5 * rate))
    arrivals_s = np.sort(np.concatenate((before_s, burst_s, after_s)))
    outcome = run(name, Offered.alike(arrivals_s, OBJECTIVE_S))
    recovered_s = outcome.recovery_s(from_s=2.5, window_s=0.5, good_share=0.95)
    assert recovered_s is not None
    assert recovered_s <= 3.0


def test_figures_of_a_simulation_are_those_of_its_schedule() -> None:
    offered = Offered(
        np.array([0.0, 0.001, 0.002, 0.050]),
        np.array([0.012, 0.020, 0.030, 0.012]),
        np.array([1, 3, 3, 3]),
    )
    outcome = simulate(offered, Greedy(2), SERVICE, tell_deadlines=False)
    # 0 alone 0-12; 1 and 2 together 12-26; 3 alone 50-62.
    assert outcome.done_s == pytest.approx([0.012, 0.026, 0.026, 0.062])
    assert outcome.good.tolist() == [True, False, True, True]
    assert outcome.num_good == 3
    assert outcome.latency_s == pytest.approx([0.012, 0.025, 0.024, 0.012])
    assert outcome.wait_s(1) == pytest.approx([0.0])
    assert outcome.wait_s(3) == pytest.approx([0.011, 0.010, 0.0])
    assert outcome.answered_per_s == pytest.approx(4 / 0.062)
    assert outcome.stats.num_batches == 3
    assert outcome.recovery_s(from_s=0.0, window_s=0.01, good_share=0.9) == pytest.approx(0.01)
    assert outcome.recovery_s(from_s=0.0, window_s=0.1, good_share=0.9) is None


def test_a_prefill_beside_running_rows_is_one_pass_with_their_step() -> None:
    offered = Offered.alike(np.array([0.0, 1.0]), 100.0)
    service = ServiceTable((3.0, 5.0), (1.0, 1.0), num_steps=2, base_s=2.0)
    outcome = simulate(offered, Continuous(2), service)
    # 0-4: the first is read and makes a step. 4-6: both, the second is read. 6-7: the second.
    assert outcome.done_s == pytest.approx([6.0, 7.0])
    static = simulate(offered, Greedy(2), service)
    assert static.done_s == pytest.approx([5.0, 10.0])


def test_who_is_told_when_answers_are_useless_does_not_serve_them() -> None:
    offered = Offered(np.array([0.0, 0.0]), np.array([0.02, 0.01]), np.array([1, 3]))
    outcome = simulate(offered, Greedy(1), SERVICE)
    assert outcome.answered.tolist() == [True, False]
    assert outcome.stats.num_timed_out == 1


def test_simulations_repeat_to_the_bit() -> None:
    offered = offered_at(0.8, made_arrivals()[:200])
    first, second = (simulate(offered, Greedy(16), SERVICE) for _ in range(2))
    assert np.array_equal(first.done_s, second.done_s, equal_nan=True)


@pytest.mark.parametrize(
    ("arrivals", "objectives", "problem"),
    [
        ([], [], "arrival_s: got nothing"),
        ([0.0, 1.0], [1.0], "objective_s: got 1; expected 2 values"),
        ([1.0, 0.0], [1.0, 1.0], "ascending"),
        ([-1.0, 0.0], [1.0, 1.0], "from 0 up"),
        ([0.0], [0.0], "objective_s: expected seconds above 0"),
    ],
)
def test_senseless_loads_are_refused(
    arrivals: list[float], objectives: list[float], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Offered(np.array(arrivals), np.array(objectives), np.full(len(arrivals), 3))


def test_a_table_shorter_than_the_largest_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="service: got sizes up to 32; expected up to"):
        simulate(offered_at(0.5, made_arrivals()), Greedy(33), SERVICE)
