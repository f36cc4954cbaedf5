"""One poisoned item hurts nobody else, and a broken engine costs a bounded number of runs."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.batching.batcher import Batcher
from capibench.batching.isolation import Isolation
from capibench.batching.request import Answered
from capibench.batching.strategies.continuous import Continuous
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategy import Strategy
from capibench.clock import run_virtual
from capibench.errors import WorkerBroken

Ends = list[Answered[int] | BaseException]


class Engine:
    """10 ms a run; chokes on the poisoned, and on everything while it is broken."""

    def __init__(self, poisoned: frozenset[int] = frozenset(), error: str = "") -> None:
        self.poisoned = poisoned
        self.error = error
        self.runs: list[list[int]] = []

    async def __call__(self, contents: Sequence[int], worker: int) -> list[int]:
        self.runs.append(list(contents))
        await asyncio.sleep(0.01)
        if self.error == "worker":
            raise WorkerBroken("the worker is gone")
        if self.error == "any":
            raise OSError("no more memory")
        for content in contents:
            if content in self.poisoned:
                raise ValueError(f"cannot digest {content}")
        return [content * 10 for content in contents]


async def served(engine: Engine, strategy: Strategy, count: int) -> tuple[Ends, Batcher]:
    made: Batcher[int, int] = Batcher(engine, strategy, 1, 1000)
    made.start()
    ends = await asyncio.gather(
        *(made.submit(number) for number in range(count)), return_exceptions=True
    )
    await made.stop()
    return ends, made


def test_the_culprit_is_found_in_halves_and_its_neighbours_are_answered() -> None:
    engine = Engine(frozenset({5}))
    ends, made = run_virtual(served(engine, Greedy(8), 8))
    assert engine.runs == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [6, 7],
        [4],
        [5],
    ]
    assert str(ends[5]) == "cannot digest 5"
    answers = [end for end in ends if isinstance(end, Answered)]
    assert [answered.value for answered in answers] == [0, 10, 20, 30, 40, 60, 70]
    assert {answered.batch_size for answered in answers} == {8}
    assert [round(answered.done_s, 3) for answered in answers] == [0.02] * 4 + [0.06, 0.05, 0.05]
    stats = made.stats()
    assert (stats.num_answered, stats.num_failed, stats.num_retries) == (7, 1, 6)
    assert stats.busy_s == pytest.approx((0.07,))
    record = made.history()[0]
    assert (record.size, record.num_answered, record.num_failed, record.num_retries) == (8, 7, 1, 6)


def test_the_worker_takes_no_new_work_before_the_culprit_is_found() -> None:
    async def main() -> None:
        engine = Engine(frozenset({1}))
        made: Batcher[int, int] = Batcher(engine, Greedy(2), 1, 100)
        made.start()
        first = [asyncio.create_task(made.submit(number)) for number in (0, 1)]
        await asyncio.sleep(0.005)
        later = asyncio.create_task(made.submit(2))
        await asyncio.wait([*first, later])
        assert engine.runs == [[0, 1], [0], [1], [2]]
        await made.stop()

    run_virtual(main())


@given(count=st.integers(1, 40), poisoned=st.sets(st.integers(0, 39)), size=st.integers(1, 33))
def test_no_innocent_fails_however_many_culprits_there_are(
    count: int, poisoned: set[int], size: int
) -> None:
    engine = Engine(frozenset(poisoned))
    ends, made = run_virtual(served(engine, Greedy(size), count))
    assert {i for i, end in enumerate(ends) if not isinstance(end, Answered)} == {
        i for i in poisoned if i < count
    }
    for i, end in enumerate(ends):
        assert end.value == i * 10 if isinstance(end, Answered) else str(i) in str(end)
    batches = [range(begin, min(begin + size, count)) for begin in range(0, count, size)]
    bounds = [most_runs(len(batch), sum(i in poisoned for i in batch)) for batch in batches]
    assert made.stats().num_retries <= sum(bounds)


def most_runs(size: int, num_poisoned: int) -> int:
    """As `Isolation` states it."""
    if not num_poisoned:
        return 0
    halvings = math.ceil(math.log2(size))
    searched = num_poisoned * 2 * halvings + (num_poisoned + 1 if num_poisoned > 3 else 0)
    return min(searched, 2 * size - 2)


@given(count=st.integers(1, 130), share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_every_item_gets_exactly_one_end_in_a_bounded_number_of_runs(
    count: int, share: float, seed: int
) -> None:
    """However many culprits, up to all: each fails, and nobody else."""
    draw = random.Random(seed)
    poisoned = {n for n in range(count) if draw.random() < share} or {seed % count}
    num_runs = 0
    isolation = Isolation(range(count))
    failed = [*isolation.lost]
    good: list[int] = []
    while (part := isolation.next()) is not None:
        num_runs += 1
        if poisoned & set(part):
            failed += isolation.failed(part)
        else:
            isolation.succeeded()
            good += part
    assert sorted(failed + good) == list(range(count))
    assert set(failed) == poisoned
    assert num_runs <= most_runs(count, len(poisoned))
    if len(poisoned) == count >= 8:
        assert num_runs == count + 6


@pytest.mark.parametrize(
    ("error", "num_runs", "message"),
    [("any", 1 + 6 + 64, "no more memory"), ("worker", 1, "the worker is gone")],
)
def test_a_broken_engine_costs_little_more_than_one_run_per_item(
    error: str, num_runs: int, message: str
) -> None:
    engine = Engine(error=error)
    ends, made = run_virtual(served(engine, Greedy(64), 64))
    assert len(engine.runs) == num_runs
    assert [str(end) for end in ends] == [message] * 64
    assert made.stats().num_failed == 64


def test_a_search_that_is_not_wanted_is_not_made() -> None:
    async def main() -> None:
        engine = Engine(frozenset({1}))
        made: Batcher[int, int] = Batcher(engine, Greedy(4), 1, 100, isolates_failures=False)
        made.start()
        ends = await asyncio.gather(*(made.submit(n) for n in range(6)), return_exceptions=True)
        assert engine.runs == [[0, 1, 2, 3], [4, 5]]
        assert [isinstance(end, Answered) for end in ends] == [False] * 4 + [True] * 2
        await made.stop()

    run_virtual(main())


def test_a_fault_that_passes_hurts_nobody() -> None:
    class Hiccups(Engine):
        async def __call__(self, contents: Sequence[int], worker: int) -> list[int]:
            self.error = "any" if len(self.runs) in (0, 2) else ""
            return await super().__call__(contents, worker)

    ends, made = run_virtual(served(Hiccups(), Greedy(8), 8))
    assert [end.value for end in ends if isinstance(end, Answered)] == [i * 10 for i in range(8)]
    assert made.stats().num_retries == 4


def test_a_worker_that_breaks_during_the_search_fails_only_who_is_left() -> None:
    class Breaks(Engine):
        async def __call__(self, contents: Sequence[int], worker: int) -> list[int]:
            if len(self.runs) == 3:
                self.error = "worker"
            return await super().__call__(contents, worker)

    engine = Breaks(frozenset({7}))
    ends, made = run_virtual(served(engine, Greedy(8), 8))
    assert [isinstance(end, Answered) for end in ends] == [True] * 4 + [False] * 4
    assert [str(end) for end in ends[4:]] == ["the worker is gone"] * 4
    assert made.stats().num_running == 0


def test_who_gives_up_during_the_search_is_not_run_again() -> None:
    async def main() -> None:
        engine = Engine(frozenset({0}))
        made: Batcher[int, int] = Batcher(engine, Greedy(4), 1, 100)
        made.start()
        tasks = [asyncio.create_task(made.submit(number)) for number in range(4)]
        await asyncio.sleep(0.005)
        tasks[1].cancel()
        tasks[2].cancel()
        tasks[3].cancel()
        await asyncio.wait(tasks)
        assert engine.runs == [[0, 1, 2, 3], [0]]
        await made.stop()
        stats = made.stats()
        assert (stats.num_cancelled, stats.num_failed, stats.num_running) == (3, 1, 0)

    run_virtual(main())


def test_items_that_join_running_ones_fail_alone_without_a_search() -> None:
    engine = Engine(frozenset({1}))
    ends, made = run_virtual(served(engine, Continuous(4), 4))
    assert engine.runs == [[0], [1], [2], [3]]
    assert [isinstance(end, Answered) for end in ends] == [True, False, True, True]
    stats = made.stats()
    assert (stats.num_batches, stats.num_retries) == (1, 0)
    assert stats.busy_s == pytest.approx((0.01,))
