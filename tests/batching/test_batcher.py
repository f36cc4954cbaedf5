"""The batcher under virtual time: exact schedules, deadlines, cancellation, errors, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from choice_files import choices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capibench.batching.batcher import Batcher
from capibench.batching.request import Answered
from capibench.batching.strategies.fixed_size import FixedSize
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategies.time_based import TimeBased
from capibench.batching.strategy import Dispatch, QueueView, Strategy, WaitUntil
from capibench.clock import run_virtual
from capibench.errors import DeadlinePassed, QueueFull, RequestFailed, RequestShed

INFINITY = float("inf")
AnyBatcher = Batcher[Any, Any]


def now() -> float:
    return asyncio.get_running_loop().time()


async def service(contents: Sequence[Any], worker: int) -> list[Any]:
    """10 + 2n milliseconds; the result tells who asked."""
    await asyncio.sleep((10 + 2 * len(contents)) / 1000)
    return [f"answer to {content}" for content in contents]


def batcher(strategy: Strategy, workers: int = 1, queue: int = 1000) -> AnyBatcher:
    made: AnyBatcher = Batcher(service, strategy, workers, max_queue_size=queue)
    made.start()
    return made


def fixed_size(max_batch_size: int, wait_ms: float) -> FixedSize:
    return FixedSize(max_batch_size, 1, full_wait_ms=wait_ms, max_wait_ms=wait_ms)


async def at(time_s: float, work: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.sleep(time_s - now())
    return await work


def ms(answered: Answered[Any]) -> tuple[int, str, float, float]:
    return (
        answered.batch_id,
        answered.reason,
        round(answered.dispatched_s * 1000, 6),
        round(answered.done_s * 1000, 6),
    )


async def schedule(strategy: Strategy, times_ms: list[float], workers: int = 1) -> list[Any]:
    made = batcher(strategy, workers)
    answers = await asyncio.gather(
        *(at(time_ms / 1000, made.submit(i)) for i, time_ms in enumerate(times_ms))
    )
    assert [answered.value for answered in answers] == [
        f"answer to {i}" for i in range(len(times_ms))
    ]
    await made.stop()
    return [ms(answered) for answered in answers]


SIX_MS = [0.0, 1.0, 2.0, 3.0, 5.0, 40.0]


def test_exact_schedule_greedy() -> None:
    assert run_virtual(schedule(Greedy(3), SIX_MS)) == [
        (0, "idle_worker", 0, 12),
        (1, "full", 12, 28),
        (1, "full", 12, 28),
        (1, "full", 12, 28),
        (2, "idle_worker", 28, 40),
        (3, "idle_worker", 40, 52),
    ]


def test_exact_schedule_fixed_size() -> None:
    assert run_virtual(schedule(fixed_size(3, 20.0), SIX_MS)) == [
        (0, "full", 2, 18),
        (0, "full", 2, 18),
        (0, "full", 2, 18),
        (1, "timeout", 23, 37),
        (1, "timeout", 23, 37),
        (2, "timeout", 60, 72),
    ]


def test_exact_schedule_time_based() -> None:
    assert run_virtual(schedule(TimeBased(3, 20.0), SIX_MS)) == [
        (0, "window", 20, 36),
        (0, "window", 20, 36),
        (0, "window", 20, 36),
        (1, "window", 36, 50),
        (1, "window", 36, 50),
        (2, "window", 60, 72),
    ]


def test_exact_schedule_without_batching() -> None:
    assert run_virtual(schedule(Greedy(1), [0.0, 0.0, 30.0])) == [
        (0, "full", 0, 12),
        (1, "full", 12, 24),
        (2, "full", 30, 42),
    ]


def test_two_workers_serve_side_by_side() -> None:
    assert run_virtual(schedule(Greedy(2), [0.0, 0.0, 0.0, 0.0, 1.0], workers=2)) == [
        (0, "full", 0, 14),
        (0, "full", 0, 14),
        (1, "full", 0, 14),
        (1, "full", 0, 14),
        (2, "idle_worker", 14, 26),
    ]


def test_who_is_answered_together_may_ask_again_together() -> None:
    """Otherwise a closed loop falls apart into ever smaller batches."""

    async def main() -> float | None:
        made = batcher(Greedy(8))

        async def client() -> None:
            for _ in range(5):
                await made.submit("x")

        await asyncio.gather(*(client() for _ in range(8)))
        await made.stop()
        return made.stats().mean_batch_size

    assert run_virtual(main()) == 8


@pytest.mark.parametrize("name", choices("batching"))
@given(
    gaps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.001, 0.015, 0.2]),
            st.integers(1, 5),
            st.sampled_from([0.0, 0.004, INFINITY]),
            st.sampled_from([0.003, 0.02, INFINITY]),  # deadline
            st.booleans(),  # the caller gives up after 5 ms
        ),
        min_size=1,
        max_size=30,
    ),
    workers=st.integers(1, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_every_request_ends_exactly_once(
    choice: Callable[..., Any],
    name: str,
    gaps: list[tuple[float, int, float, float, bool]],
    workers: int,
) -> None:
    async def main() -> None:
        built = choice("batching", name)
        made: AnyBatcher = Batcher(
            service, built.strategy, workers, 1000, composition=built.composition
        )
        made.start()
        ends: list[str] = []

        async def one(number: int, gap: tuple[float, int, float, float, bool]) -> None:
            deadline_s = now() + gap[3]
            asked = made.submit(number, priority=gap[1], max_wait_s=gap[2], deadline_s=deadline_s)
            try:
                answered = await asyncio.wait_for(asked, 0.005 if gap[4] else None)
                assert answered.value == f"answer to {number}"
                assert answered.enqueued_s <= answered.dispatched_s < deadline_s
                ends.append("answered")
            except DeadlinePassed:
                assert now() == pytest.approx(deadline_s, abs=2e-9)
                ends.append("timed_out")
            except RequestShed:
                ends.append("rejected")
            except TimeoutError:
                ends.append("cancelled")

        async with asyncio.TaskGroup() as tasks:
            for number, gap in enumerate(gaps):
                await asyncio.sleep(gap[0])
                tasks.create_task(one(number, gap))
        await made.stop()
        stats = made.stats()
        assert len(ends) == len(gaps)
        assert stats.num_answered == ends.count("answered")
        assert stats.num_timed_out == ends.count("timed_out")
        assert stats.num_rejected == ends.count("rejected")
        assert stats.num_cancelled == ends.count("cancelled")
        assert (stats.num_waiting, stats.num_running, stats.num_failed) == (0, 0, 0)
        assert sum(stats.reasons.values()) == stats.num_batches

    run_virtual(main())


def test_a_full_queue_refuses_at_once_and_takes_again_when_a_slot_is_free() -> None:
    async def main() -> None:
        made = batcher(Greedy(1), queue=2)
        tasks = [asyncio.create_task(made.submit(0))]
        await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(made.submit(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 requests wait already"):
            await made.submit(3)
        assert now() == 0.001
        tasks[1].cancel()
        await asyncio.sleep(0)
        await made.submit(4)
        assert made.stats().num_rejected == 1
        await made.stop()

    run_virtual(main())


def test_a_deadline_ends_the_wait_at_that_very_time_even_behind_busy_workers() -> None:
    async def main() -> None:
        made = batcher(Greedy(1), queue=1)
        first = asyncio.create_task(made.submit("first"))
        await asyncio.sleep(0.001)
        with pytest.raises(DeadlinePassed):
            await made.submit("second", deadline_s=0.005)
        assert now() == pytest.approx(0.005, abs=1e-9)
        third = asyncio.create_task(made.submit("third"))  # the slot is free again
        assert ms(await first)[2:] == (0, 12)
        assert ms(await third)[2:] == (12, 24)
        with pytest.raises(DeadlinePassed, match="before queueing"):
            await made.submit("late", deadline_s=0.001)
        assert made.stats().num_timed_out == 2
        await made.stop()

    run_virtual(main())


def test_an_earlier_deadline_than_the_one_waited_for_is_kept_too() -> None:
    async def main() -> list[float]:
        made = batcher(fixed_size(4, 1000.0))
        ended: list[float] = []

        async def one(deadline_s: float) -> None:
            with pytest.raises(DeadlinePassed):
                await made.submit("x", deadline_s=deadline_s)
            ended.append(round(now(), 6))

        await asyncio.gather(one(0.3), at(0.1, one(0.2)), at(0.15, one(0.5)))
        await made.stop()
        return ended

    assert run_virtual(main()) == [0.2, 0.3, 0.5]


def test_a_cancelled_request_leaves_the_queue_and_hurts_no_neighbour() -> None:
    async def main() -> None:
        made = batcher(fixed_size(3, 20.0))
        tasks = [asyncio.create_task(made.submit(number)) for number in range(2)]
        await asyncio.sleep(0.001)
        tasks[0].cancel()
        tasks += [asyncio.create_task(made.submit(number)) for number in (2, 3)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert [ms(answered) for answered in answers[1:]] == [(0, "full", 1, 17)] * 3
        running = asyncio.create_task(made.submit(4, max_wait_s=0.0))
        other = asyncio.create_task(made.submit(5))
        await asyncio.sleep(0.001)
        running.cancel()  # its batch runs already; the neighbour gets its answer
        assert (await other).value == "answer to 5"
        stats = made.stats()
        assert (stats.num_cancelled, stats.num_answered) == (2, 4)
        await made.stop()

    run_virtual(main())


@pytest.mark.parametrize("wrong", [[], ["one"], ["one", "two", "three"]])
def test_a_wrong_number_of_results_is_an_error_not_a_hang(wrong: list[str]) -> None:
    async def main() -> None:
        async def short(contents: Sequence[str], worker: int) -> list[str]:
            return wrong

        made: Batcher[str, str] = Batcher(short, Greedy(2), 1, 10)
        made.start()
        answers = await asyncio.gather(made.submit("a"), made.submit("b"), return_exceptions=True)
        for answered in answers:
            assert f"returned {len(wrong)} results for 2 items" in str(answered)
        await made.stop()

    run_virtual(main())


def test_stop_serves_what_waits() -> None:
    async def main() -> list[tuple[int, str, float, float]]:
        made = batcher(fixed_size(4, 1000.0))
        tasks = [asyncio.create_task(made.submit(number)) for number in range(6)]
        await asyncio.sleep(0.001)
        await made.stop(drain=True)
        with pytest.raises(RuntimeError, match="after stop"):
            await made.submit(7)
        await made.stop()
        return [ms(await task) for task in tasks]

    assert run_virtual(main()) == [(0, "full", 0, 18)] * 4 + [(1, "drain", 18, 32)] * 2


def test_stop_without_draining_fails_what_waits_and_finishes_what_runs() -> None:
    async def main() -> None:
        made = batcher(Greedy(1))
        tasks = [asyncio.create_task(made.submit(number)) for number in range(3)]
        await asyncio.sleep(0.001)
        await made.stop(drain=False)
        assert now() == pytest.approx(0.012, abs=1e-9)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0].value == "answer to 0"
        assert all(isinstance(answered, RequestFailed) for answered in answers[1:])
        assert made.stats().num_failed == 2

    run_virtual(main())


def test_stop_returns_when_the_last_waiting_caller_gives_up() -> None:
    async def main() -> None:
        made = batcher(Lazy())
        task = asyncio.create_task(made.submit("x"))
        await asyncio.sleep(0.001)
        stopping = asyncio.create_task(made.stop())
        await asyncio.sleep(0.001)
        task.cancel()
        await stopping
        assert made.stats().num_cancelled == 1

    run_virtual(main())


def test_submit_before_start_and_starting_twice_are_errors() -> None:
    async def main() -> None:
        made: AnyBatcher = Batcher(service, Greedy(1), 1, max_queue_size=1)
        with pytest.raises(RuntimeError, match="used before start"):
            await made.submit("x")
        with pytest.raises(RuntimeError, match="stopped before start"):
            await made.stop()
        made.start()
        with pytest.raises(RuntimeError, match="twice"):
            made.start()
        await made.stop()

    run_virtual(main())


def test_stats_count_busy_time_of_a_running_batch_too() -> None:
    async def main() -> None:
        made = batcher(Greedy(2), workers=2)
        task = asyncio.create_task(made.submit("x"))
        await asyncio.sleep(0.005)
        assert made.stats().busy_s == pytest.approx((0.005, 0.0))
        assert made.stats().num_running == 1
        await task
        assert made.stats().busy_s == pytest.approx((0.012, 0.0))
        assert made.stats().reasons == {"idle_worker": 1}
        await made.stop()

    run_virtual(main())


def test_a_cancelled_batch_fails_its_callers() -> None:
    async def main() -> None:
        async def cancelled(contents: Sequence[str], worker: int) -> list[str]:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(1)
            return []

        made: Batcher[str, str] = Batcher(cancelled, Greedy(2), 1, 10)
        assert made.stats().mean_batch_size is None
        made.start()
        with pytest.raises(RequestFailed, match="the batch was cancelled"):
            await made.submit("x")
        await made.stop()
        assert made.stats().num_failed == 1

    run_virtual(main())


def test_who_is_cancelled_in_the_instant_of_the_answer_is_counted_once() -> None:
    async def main() -> None:
        async def cancels_its_caller(contents: Sequence[str], worker: int) -> list[str]:
            asyncio.get_running_loop().call_soon(task.cancel)  # runs after the answer was set
            return list(contents)

        made: Batcher[str, str] = Batcher(cancels_its_caller, Greedy(1), 1, 10)
        made.start()
        task = asyncio.create_task(made.submit("x"))
        await asyncio.wait([task])
        assert task.cancelled()
        stats = made.stats()
        assert (stats.num_answered, stats.num_cancelled) == (1, 0)
        await made.stop()

    run_virtual(main())


class Lazy:
    """Waits a minute at a time, for ever."""

    max_batch_size = 1
    joins_running = False

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        return WaitUntil(view.now_s + 60.0)


class Lawless:
    """Sends an item that does not exist."""

    max_batch_size = 1
    joins_running = False

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        return Dispatch([5], 0, "lawless")


def test_a_strategy_that_breaks_a_law_fails_its_callers_with_the_reason() -> None:
    async def main() -> None:
        made = batcher(Lawless())
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"broke a law of batching: indices \[5\] of 1"):
                await made.submit("x")
        await made.stop()

    run_virtual(main())


@pytest.mark.parametrize(("workers", "queue"), [(0, 1), (1, 0)])
def test_senseless_sizes_are_refused(workers: int, queue: int) -> None:
    with pytest.raises(ValueError, match="got 0; expected at least 1"):
        Batcher(service, Greedy(1), workers, max_queue_size=queue)
