"""Shedding, joining, pausing, waiting for room, bounded waits, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from choice_files import choices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capibench.batching.batcher import Batcher
from capibench.batching.minimum import AtLeast
from capibench.batching.request import Answered
from capibench.batching.stats import BatcherStats
from capibench.batching.strategies.continuous import Continuous
from capibench.batching.strategies.fixed_size import FixedSize
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategy import (
    Dispatch,
    QueueView,
    Served,
    Shed,
    Strategy,
    WaitUntil,
)
from capibench.clock import run_virtual
from capibench.errors import (
    BatcherBroken,
    ConfigError,
    DeadlinePassed,
    QueueFull,
    RequestFailed,
    RequestShed,
)


def now() -> float:
    return asyncio.get_running_loop().time()


async def ten_ms(contents: Sequence[int], worker: int) -> list[int]:
    await asyncio.sleep(0.01)
    return list(contents)


def started(strategy: Strategy, **changes: Any) -> Batcher[int, int]:
    made: Batcher[int, int] = Batcher(
        ten_ms, strategy, **{"num_workers": 1, "max_queue_size": 1000, **changes}
    )
    made.start()
    return made


async def ended(made: Batcher[int, int], count: int, **how: Any) -> list[Any]:
    return await asyncio.gather(
        *(made.submit(number, **how) for number in range(count)), return_exceptions=True
    )


class Picky(Greedy):
    """Gives up the odd ones of what waits, by their size."""

    def decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        odd = [index for index, item in enumerate(view.items) if item.num_tokens % 2]
        return Shed(odd, "odd") if odd else super().decide(view)


class Learning(Greedy):
    """Keeps what it is told."""

    def observe(self, served: Served) -> None:
        self.told = [*getattr(self, "told", []), served]


def test_what_a_strategy_sheds_ends_at_once_as_rejected() -> None:
    async def main() -> None:
        made = started(Picky(4))
        tasks = [asyncio.create_task(made.submit(n, num_tokens=n + 1)) for n in range(5)]
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(end) for end in ends[::2]] == ["given up in the queue: odd"] * 3
        assert all(isinstance(end, RequestShed) for end in ends[::2])
        assert [end.value for end in ends[1::2] if isinstance(end, Answered)] == [1, 3]
        stats = made.stats()
        assert (stats.num_rejected, stats.num_answered, stats.shed_reasons) == (3, 2, {"odd": 3})
        await made.stop()

    run_virtual(main())


def test_a_strategy_is_told_service_time_and_not_the_time_in_the_queue() -> None:
    async def main() -> None:
        strategy = Learning(2)
        made = started(strategy)
        await asyncio.gather(*(made.submit(n, num_tokens=n) for n in (7, 8, 9)))
        assert [(s.worker, s.num_tokens) for s in strategy.told] == [(0, [7, 8]), (0, [9])]
        assert [s.service_s for s in strategy.told] == pytest.approx([0.01, 0.01])
        await made.stop()

    run_virtual(main())


def test_an_error_while_a_strategy_learns_reaches_its_callers() -> None:
    class Faulty(Greedy):
        def observe(self, served: Served) -> None:
            raise ArithmeticError("cannot learn")

    async def main() -> None:
        made = started(Faulty(1))
        ends = await ended(made, 2)
        assert isinstance(ends[0], Answered)  # its answer was there before
        assert isinstance(ends[1], BatcherBroken)
        assert str(ends[1].__cause__) == "cannot learn"
        with pytest.raises(BatcherBroken, match="ArithmeticError: cannot learn"):
            await made.submit(3)
        await made.stop()

    run_virtual(main())


def test_items_join_a_running_worker_and_each_leaves_when_it_is_done() -> None:
    async def main() -> None:
        running: list[int] = []
        most = 0

        async def by_content(contents: Sequence[int], worker: int) -> list[int]:
            nonlocal most
            running.extend(contents)
            most = max(most, len(running))
            await asyncio.sleep(contents[0] / 1000)
            running.remove(contents[0])
            return list(contents)

        made: Batcher[int, int] = Batcher(by_content, Continuous(2), 1, 10)
        made.start()
        answers = await asyncio.gather(*(made.submit(ms) for ms in (30, 10, 15, 20)))
        assert [round(answered.dispatched_s * 1000, 3) for answered in answers] == [0, 0, 10, 25]
        assert [round(answered.done_s * 1000, 3) for answered in answers] == [30, 10, 25, 45]
        assert most == 2
        await made.stop()
        stats = made.stats()
        assert stats.busy_s == pytest.approx((0.045,))  # once, however many run
        assert (stats.num_batches, stats.num_running) == (3, 0)
        assert stats.reasons == {"idle_worker": 1, "join": 2}
        assert stats.padded_tokens is None

    run_virtual(main())


def test_a_pause_holds_batches_back_but_not_deadlines_and_cancellations() -> None:
    async def main() -> None:
        made = started(Greedy(4))
        made.pause()
        waits = asyncio.create_task(made.submit(0))
        gives_up = asyncio.create_task(made.submit(1))
        with pytest.raises(DeadlinePassed):
            await made.submit(2, deadline_s=0.5)
        assert now() == pytest.approx(0.5)
        gives_up.cancel()
        await asyncio.sleep(0.5)
        assert made.stats().num_waiting == 1
        made.resume()
        assert (await waits).dispatched_s == pytest.approx(1.0)
        made.pause()
        last = asyncio.create_task(made.submit(3))
        await asyncio.sleep(0.1)
        await made.stop()  # a pause is no reason to wait for ever
        assert (await last).value == 3

    run_virtual(main())


def test_callers_that_wait_for_room_get_it_in_order_of_arrival() -> None:
    async def main() -> None:
        made = started(Greedy(1), max_queue_size=2)
        tasks = [
            asyncio.create_task(made.submit(n, wait_for_room=True, priority=1 + n % 2))
            for n in range(6)
        ]
        await asyncio.sleep(0.001)
        assert (made.stats().num_waiting, made.stats().num_outside) == (2, 3)
        with pytest.raises(QueueFull):
            await made.submit(9)
        answers = await asyncio.gather(*tasks)
        # 2, then 3, 4 and 5 come in as places free; of the two in line the urgent one goes first
        order = sorted(answers, key=lambda answered: answered.dispatched_s)
        assert [answered.value for answered in order] == [0, 2, 1, 4, 3, 5]
        assert all(answered.enqueued_s == 0.0 for answered in answers)  # the wait outside counts
        await made.stop()

    run_virtual(main())


def test_a_free_place_is_not_for_who_came_later() -> None:
    async def main() -> None:
        made = started(Greedy(1), max_queue_size=1)
        tasks = [asyncio.create_task(made.submit(0))]
        await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(made.submit(1)))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(made.submit(2, wait_for_room=True)))
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks.append(asyncio.create_task(made.submit(3)))  # in the same instant
        with pytest.raises(QueueFull):
            await tasks[3]
        assert (await tasks[2]).value == 2
        await made.stop()

    run_virtual(main())


def test_who_waits_for_room_may_time_out_give_up_or_meet_the_stop() -> None:
    async def main() -> None:
        made = started(Greedy(1), max_queue_size=1)
        tasks = [asyncio.create_task(made.submit(n)) for n in range(1)]
        await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(made.submit(1)))
        await asyncio.sleep(0)
        late = asyncio.create_task(made.submit(2, wait_for_room=True, deadline_s=0.005))
        leaves = asyncio.create_task(made.submit(3, wait_for_room=True))
        stays = asyncio.create_task(made.submit(4, wait_for_room=True))
        await asyncio.sleep(0.001)
        leaves.cancel()
        with pytest.raises(DeadlinePassed, match="before the queue had room"):
            await late
        assert now() == pytest.approx(0.005)
        await made.stop()
        assert [(await task).value for task in tasks] == [0, 1]
        with pytest.raises(RequestFailed, match="stopped"):
            await stays
        stats = made.stats()
        assert (stats.num_timed_out, stats.num_cancelled, stats.num_failed) == (1, 1, 1)
        assert stats.num_outside == 0

    run_virtual(main())


def test_a_request_larger_than_any_batch_is_refused_at_once(choice: Callable[..., Any]) -> None:
    async def main() -> None:
        node = choice("batching", "greedy")
        tight = type(node.composition)("arrival", 10, 1)
        made = started(node.strategy, composition=tight)
        with pytest.raises(ConfigError, match=r"got 10; expected at least 11"):
            await made.submit(0, num_tokens=11)
        answers = await asyncio.gather(*(made.submit(n, num_tokens=5) for n in range(3)))
        assert [answered.batch_size for answered in answers] == [2, 2, 1]
        assert made.stats().num_rejected == 1
        await made.stop()

    run_virtual(main())


@pytest.mark.parametrize("name", choices("batching"))
@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.001, 0.004, 0.03]),
            st.integers(1, 5),
            st.sampled_from([0.0, 0.01, 0.05, float("inf")]),
        ),
        min_size=1,
        max_size=60,
    ),
    workers=st.integers(1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_overdue_ones_are_shed_by_the_first_free_worker_that_passes_them_over(
    choice: Callable[..., Any],
    name: str,
    arrivals: list[tuple[float, int, float]],
    workers: int,
) -> None:
    """So whoever is served waited at most its own wait and the service that ran at its end."""

    async def main() -> None:
        built = choice("batching", name)
        made = started(
            built.strategy,
            num_workers=workers,
            composition=built.composition,
            sheds_overdue=True,
        )

        async def one(number: int, priority: int, max_wait_s: float) -> None:
            try:
                answered = await made.submit(number, priority=priority, max_wait_s=max_wait_s)
            except RequestShed:
                return
            assert answered.dispatched_s - answered.enqueued_s <= max_wait_s + 0.01 + 0.001

        async with asyncio.TaskGroup() as tasks:
            for number, (gap_s, priority, max_wait_s) in enumerate(arrivals):
                await asyncio.sleep(gap_s)
                tasks.create_task(one(number, priority, max_wait_s))
        stats = made.stats()
        assert stats.num_answered + stats.num_rejected == len(arrivals)
        assert stats.num_rejected == sum(stats.shed_reasons.values())
        await made.stop()

    run_virtual(main())


def test_small_batches_are_held_back_for_a_while_whatever_the_strategy() -> None:
    async def main() -> list[tuple[float, int]]:
        made = started(AtLeast(Greedy(8), 3, max_wait_ms=50.0))
        first = [asyncio.create_task(made.submit(n)) for n in range(2)]
        await asyncio.sleep(0.1)
        hasty = asyncio.create_task(made.submit(3, max_wait_s=0.02))
        await asyncio.sleep(0.1)
        full = [asyncio.create_task(made.submit(n)) for n in range(3)]
        await asyncio.sleep(0.1)
        last = asyncio.create_task(made.submit(9))
        await asyncio.sleep(0)
        await made.stop()
        answers = [await task for task in (*first, hasty, *full, last)]
        return [(round(a.dispatched_s, 6), a.batch_size) for a in answers]

    assert run_virtual(main()) == [
        (0.05, 2), (0.05, 2), (0.12, 1), (0.2, 3), (0.2, 3), (0.2, 3), (0.3, 1),
    ]  # fmt: skip


def test_what_is_counted() -> None:
    async def main() -> None:
        made = started(FixedSize(4, 1, full_wait_ms=30.0, max_wait_ms=30.0), max_queue_size=8)
        early = [
            asyncio.create_task(made.submit(n, priority=1 + n % 2, num_tokens=n + 1))
            for n in range(4)
        ]
        await asyncio.gather(*early)
        assert now() == pytest.approx(0.01)
        late = asyncio.create_task(made.submit(4, num_tokens=10, deadline_s=0.045))
        await asyncio.sleep(0.005)
        assert made.stats().queue_utilisation == 1 / 8
        await late
        stats = made.stats()
        assert stats.elapsed_s == pytest.approx(0.05)
        assert (stats.num_answered, stats.num_in_time) == (5, 4)  # left in time, answered too late
        assert stats.answered_per_s == pytest.approx(100)
        assert stats.goodput_per_s == pytest.approx(80)
        assert stats.mean_batch_size == 2.5
        assert stats.efficiency == 2.5 / 4
        assert (stats.real_tokens, stats.padded_tokens) == (1 + 2 + 3 + 4 + 10, 4 * 4 + 10)
        assert stats.peak_queue_utilisation == 4 / 8
        assert stats.reasons == {"full": 1, "timeout": 1}
        assert {priority: waits.num_waits for priority, waits in stats.waits.items()} == {
            1: 2, 2: 2, 3: 1,
        }  # fmt: skip
        assert (stats.waits[1].p50_s, stats.waits[1].p95_s) == (0.0, None)
        assert [(r.batch_id, r.reason, r.padded_tokens) for r in made.history()] == [
            (0, "full", 16),
            (1, "timeout", 10),
        ]
        await made.stop()

    run_virtual(main())


def test_wait_quantiles_are_order_statistics() -> None:
    async def main() -> BatcherStats:
        made = started(Greedy(1))
        await ended(made, 200)
        await made.stop()
        return made.stats()

    waits = run_virtual(main()).waits[3]
    assert waits.num_waits == 200
    assert (waits.p50_s, waits.p95_s, waits.p99_s) == pytest.approx((0.99, 1.89, 1.97))


def test_the_stats_can_be_watched_until_the_end() -> None:
    async def main() -> None:
        made = started(Greedy(1))

        async def watch() -> list[tuple[float, int]]:
            return [(round(s.elapsed_s, 6), s.num_answered) async for s in made.watch(0.02)]

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(made.submit(n)) for n in range(5)]
        await asyncio.sleep(0.001)
        await made.stop()
        await asyncio.gather(*tasks)
        seen = await watching
        assert [at_s for at_s, _ in seen] == [0.02, 0.04, 0.05]
        assert seen[-1][1] == 5

        with pytest.raises(ValueError, match=r"interval_s: got 0; expected more than 0"):
            async for _ in made.watch(0):
                pass

    run_virtual(main())


def test_nothing_is_known_before_the_first_batch() -> None:
    async def main() -> None:
        made: Batcher[int, int] = Batcher(ten_ms, Greedy(2), 1, 10)
        stats = made.stats()
        assert (stats.mean_batch_size, stats.efficiency, stats.answered_per_s) == (None,) * 3
        assert (stats.real_tokens, stats.padded_tokens, stats.waits) == (None, None, {})
        made.start()
        await made.stop()

    run_virtual(main())
