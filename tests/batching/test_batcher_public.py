"""`DynamicBatcher` as its users see it: ids, states, results, callbacks, errors, figures."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from choice_files import choices

import capibench.batching
from capibench.batching import (
    BatchOutcome,
    BatchStrategy,
    DynamicBatcher,
    RequestPriority,
    RequestState,
)
from capibench.clock import run_virtual
from capibench.errors import (
    ConfigError,
    DeadlinePassed,
    QueueFull,
    RequestCancelled,
    RequestFailed,
    RequestShed,
    UnknownRequest,
)


def now() -> float:
    return asyncio.get_running_loop().time()


async def upper(contents: list[str]) -> list[str]:
    await asyncio.sleep(0.01)
    if "poison" in contents:
        raise ValueError("cannot digest")
    return [content.upper() for content in contents]


async def started(**arguments: Any) -> DynamicBatcher[str, str]:
    batcher: DynamicBatcher[str, str] = DynamicBatcher(upper, **arguments)
    await batcher.start_processing()
    return batcher


def test_as_the_documentation_says() -> None:
    async def main() -> None:
        batcher = DynamicBatcher(upper, strategy=BatchStrategy.ADAPTIVE, max_batch_size=32)
        await batcher.start_processing()
        request_id = await batcher.submit_request(
            content="text", priority=RequestPriority.HIGH, max_wait_time_ms=500
        )
        assert await batcher.result(request_id) == "TEXT"
        await batcher.stop_processing()

    run_virtual(main())
    asyncio.run(main())


@pytest.mark.parametrize("strategy", list(BatchStrategy))
def test_every_strategy_serves_each_request_its_own_answer(strategy: BatchStrategy) -> None:
    async def main() -> None:
        batcher = await started(strategy=strategy, max_batch_size=4, min_batch_size=2)
        ids = [
            await batcher.submit_request(f"text {n}", priority=RequestPriority(1 + n % 5))
            for n in range(30)
        ]
        assert len(set(ids)) == 30
        assert [await batcher.result(one) for one in ids] == [f"TEXT {n}" for n in range(30)]
        await batcher.stop_processing()
        stats = batcher.get_batcher_stats()
        assert (stats["strategy"], stats["num_answered"]) == (strategy.value, 30)
        assert stats["settings"]["strategy"]["max_batch_size"] == 4
        assert json.loads(json.dumps(stats))["waits"]["critical"]["num_waits"] == 6
        assert all(2 <= batch.size <= 4 for batch in batcher.get_batch_history()[1:])

    run_virtual(main())


@pytest.mark.parametrize(
    ("least", "count", "wait_ms"), [(1, 1, 100), (3, 2, 100), (3, 3, 50), (3, 8, 0)]
)
def test_fixed_size_waits_longer_for_its_least_size(least: int, count: int, wait_ms: int) -> None:
    async def main() -> None:
        batcher = await started(
            strategy=BatchStrategy.FIXED_SIZE,
            max_batch_size=8,
            min_batch_size=least,
            max_wait_time_ms=100,
        )
        for number in range(count):
            await batcher.submit_request(f"text {number}")
        await asyncio.sleep(1)
        (batch,) = batcher.get_batch_history()
        assert (batch.size, batch.dispatched_s) == (count, pytest.approx(wait_ms / 1000))
        await batcher.stop_processing()

    run_virtual(main())


def test_every_choice_but_the_baseline_has_a_name() -> None:
    assert sorted(strategy.choice for strategy in BatchStrategy) == [
        name for name in choices("batching") if name != "none"
    ]


def test_every_state_is_reached_and_readable_by_id() -> None:
    async def main() -> None:
        batcher = await started(strategy=BatchStrategy.GREEDY, max_batch_size=1, sheds_overdue=True)

        async def submit(content: str, **how: Any) -> str:
            return await batcher.submit_request(content, **{"max_wait_time_ms": 1e6, **how})

        good = await submit("good")
        assert batcher.get_request_state(good) is RequestState.PENDING
        await asyncio.sleep(0.001)
        assert batcher.get_request_state(good) is RequestState.PROCESSING
        poison = await submit("poison")
        shed = await submit("shed", priority=RequestPriority.LOW, max_wait_time_ms=0)
        late = await submit("late", priority=RequestPriority.LOW, deadline_ms=5)
        back = await submit("back")
        assert batcher.cancel_request(back)
        assert not batcher.cancel_request(back)
        assert await batcher.result(good) == "GOOD"
        for request_id, error, state in (
            (poison, ValueError, RequestState.FAILED),
            (shed, RequestShed, RequestState.REJECTED),
            (late, DeadlinePassed, RequestState.TIMED_OUT),
            (back, RequestCancelled, RequestState.CANCELLED),
        ):
            with pytest.raises(error):
                await batcher.result(request_id)
            assert batcher.get_request_state(request_id) is state
        assert batcher.get_request_state(good) is RequestState.COMPLETED
        await batcher.stop_processing()

    run_virtual(main())


def test_callbacks_are_given_every_kind_of_end() -> None:
    async def main() -> None:
        ends: list[BatchOutcome[str]] = []

        async def slowly(outcome: BatchOutcome[str]) -> None:
            await asyncio.sleep(1.0)
            ends.append(outcome)

        def faulty(outcome: BatchOutcome[str]) -> None:
            raise LookupError("a bug of the caller's")

        batcher = await started(strategy=BatchStrategy.GREEDY, max_batch_size=2)
        a = await batcher.submit_request("a", callback=ends.append, metadata={"user": 7})
        b = await batcher.submit_request("poison", callback=ends.append)
        await batcher.submit_request("c", callback=faulty)
        d = await batcher.submit_request("d", callback=slowly)
        await batcher.stop_processing()
        assert [end.request_id for end in ends] == [a, b, d]
        assert (ends[0].state, ends[0].result, ends[0].metadata) == (
            RequestState.COMPLETED, "A", {"user": 7},
        )  # fmt: skip
        assert (ends[0].batch_size, ends[0].wait_ms, ends[0].service_ms) == (
            2, 0.0, pytest.approx(20.0),
        )  # fmt: skip
        assert (ends[1].state, str(ends[1].error), ends[1].result, ends[1].batch_id) == (
            RequestState.FAILED, "cannot digest", None, None,
        )  # fmt: skip
        with pytest.raises(FrozenInstanceError):
            ends[0].result = "B"  # type: ignore[misc]

    run_virtual(main())


def test_a_result_is_kept_until_fetched_and_memory_is_bounded() -> None:
    async def main() -> None:
        batcher = await started(max_kept_results=3)
        ids = [await batcher.submit_request(f"{n}") for n in range(5)]
        await batcher.stop_processing()
        assert batcher.get_batcher_stats()["num_kept_results"] == 3
        with pytest.raises(UnknownRequest, match="the newest 3 are kept"):
            await batcher.result(ids[1])
        assert batcher.get_request_state(ids[1]) is RequestState.COMPLETED
        assert await batcher.result(ids[4]) == "4"
        with pytest.raises(UnknownRequest, match="not fetched yet"):
            await batcher.result(ids[4])
        for request_id in ids[2:4]:
            await batcher.result(request_id)
        with pytest.raises(UnknownRequest, match="ended long ago"):
            batcher.get_request_state(ids[0])
        assert not batcher.cancel_request(ids[3])

    run_virtual(main())


def test_two_may_wait_for_one_result_and_one_of_them_may_leave() -> None:
    async def main() -> None:
        batcher = await started()
        request_id = await batcher.submit_request("a")
        waiting = [asyncio.create_task(batcher.result(request_id)) for _ in range(3)]
        await asyncio.sleep(0.001)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == ["A", "A"]
        await batcher.stop_processing()

    run_virtual(main())


def test_back_pressure_refuses_or_waits() -> None:
    async def main() -> None:
        batcher = await started(strategy=BatchStrategy.GREEDY, max_batch_size=1, max_queue_size=1)
        await batcher.submit_request("a")
        with pytest.raises(QueueFull):
            await batcher.submit_request("b")
        for content in ("c", "d"):
            await batcher.submit_request(content, wait_for_room=True)
        assert now() == pytest.approx(0.01)
        gives_up = asyncio.create_task(batcher.submit_request("e", wait_for_room=True))
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.wait([gives_up])
        await batcher.stop_processing()
        metrics = batcher.get_batch_metrics()
        assert (metrics.num_answered, metrics.num_rejected, metrics.num_cancelled) == (3, 1, 1)

    run_virtual(main())


@pytest.mark.parametrize("drain", [True, False])
def test_stopping_serves_or_fails_what_waits(drain: bool) -> None:
    async def main() -> None:
        batcher = await started(strategy=BatchStrategy.FIXED_SIZE, max_wait_time_ms=1000)
        batcher.pause_processing()
        request_id = await batcher.submit_request("a")
        await asyncio.sleep(2)
        batcher.resume_processing()
        batcher.pause_processing()
        await batcher.stop_processing(drain)
        if drain:
            assert await batcher.result(request_id) == "A"
        else:
            with pytest.raises(RequestFailed, match="stopped before it was served"):
                await batcher.result(request_id)
        with pytest.raises(RuntimeError, match=r"submit_request: the batcher was stopped"):
            await batcher.submit_request("b")
        await batcher.stop_processing()

    run_virtual(main())


def test_replicas_are_one_function_each() -> None:
    async def main() -> None:
        def replica(name: str, seconds: float) -> Callable[[list[str]], Any]:
            async def process(contents: list[str]) -> Sequence[str]:
                await asyncio.sleep(seconds)
                return [name] * len(contents)

            return process

        batcher: DynamicBatcher[str, str] = DynamicBatcher(
            [replica("fast", 0.01), replica("slow", 0.1)],
            strategy=BatchStrategy.LOAD_BALANCED,
            max_batch_size=1,
        )
        await batcher.start_processing()
        ids = [await batcher.submit_request("x") for _ in range(60)]
        served_by = [await batcher.result(one) for one in ids]
        assert served_by.count("fast") > 4 * served_by.count("slow") > 0
        await batcher.stop_processing()

    run_virtual(main())


def test_settings_of_the_strategy_and_sizes_of_the_contents() -> None:
    async def main() -> None:
        batcher = await started(
            strategy=BatchStrategy.GREEDY,
            count_tokens=len,
            custom_config={"composition": {"max_batch_tokens": 8}},
        )
        ids = [await batcher.submit_request("x" * n) for n in (4, 4, 2)]
        for one in ids:
            await batcher.result(one)
        metrics = batcher.get_batch_metrics()
        assert (metrics.num_batches, metrics.real_tokens, metrics.padded_tokens) == (2, 10, 10)
        with pytest.raises(ValueError, match="expected at least 9"):
            await batcher.submit_request("x" * 9)
        await batcher.stop_processing()

    run_virtual(main())


def test_metrics_can_be_watched() -> None:
    async def main() -> None:
        batcher = await started(strategy=BatchStrategy.GREEDY)

        async def watch() -> list[int]:
            return [seen.num_answered async for seen in batcher.watch_batch_metrics(4)]

        watching = asyncio.create_task(watch())
        await batcher.submit_request("a")
        await asyncio.sleep(0.018)
        await batcher.stop_processing()
        assert await watching == [0, 0, 1, 1, 1]

    run_virtual(main())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_batch_size": 0}, "max_batch_size: got 0; expected a whole number, at least 1"),
    ({"max_batch_size": 2.5}, "max_batch_size: got 2.5"),
    ({"min_batch_size": 5, "max_batch_size": 4}, r"min_batch_size: got 5; expected 1 to max"),
    ({"max_queue_size": -1}, "max_queue_size: got -1"),
    ({"max_wait_time_ms": -1}, "max_wait_time_ms: got -1; expected at least 0 and finite"),
    ({"max_wait_time_ms": float("nan")}, "max_wait_time_ms: got nan"),
    ({"strategy": "clever"}, "strategy: got 'clever'; expected one of adaptive, fixed_size"),
    ({"num_workers": 0}, "num_workers: got 0"),
    ({"max_kept_results": 0}, "max_kept_results: got 0"),
    ({"custom_config": {"speed": 1}}, r"custom_config.speed: got 1; expected one of max_batch"),
    ({"custom_config": {"objective_ms": -5}}, "objective_ms: got -5"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_values_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicBatcher(upper, **arguments)


def test_a_strategy_may_be_named_by_its_value() -> None:
    assert DynamicBatcher(upper, strategy="greedy").strategy is BatchStrategy.GREEDY  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("process", "workers"), [("no function", None), ([], None), ([upper], 2), ([upper, 3], None)]
)
def test_what_cannot_process_is_refused(process: Any, workers: int | None) -> None:
    with pytest.raises(ValueError, match=r"process_batch: got|num_workers: got"):
        DynamicBatcher(process, num_workers=workers)


def test_a_function_that_is_not_async_is_named() -> None:
    async def main() -> None:
        batcher: DynamicBatcher[str, str] = DynamicBatcher(lambda contents: contents)  # type: ignore[arg-type, return-value]
        await batcher.start_processing()
        request_id = await batcher.submit_request("a")
        with pytest.raises(RequestFailed, match=r"got a list; expected an awaitable"):
            await batcher.result(request_id)
        await batcher.stop_processing()

    run_virtual(main())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"priority": 9}, r"priority: got 9; expected one of CRITICAL \(1\)"),
        ({"max_wait_time_ms": -1}, "max_wait_time_ms: got -1; expected at least 0"),
        ({"deadline_ms": 0}, "deadline_ms: got 0; expected above 0, or None"),
    ],
)
def test_wrong_requests_are_refused(how: dict[str, Any], message: str) -> None:
    async def main() -> None:
        batcher = await started()
        with pytest.raises(ValueError, match=message):
            await batcher.submit_request("a", **how)
        await batcher.stop_processing()

    run_virtual(main())


def test_nothing_hangs_before_the_start() -> None:
    async def main() -> None:
        batcher: DynamicBatcher[str, str] = DynamicBatcher(upper)
        for early in (batcher.submit_request("a"), batcher.stop_processing()):
            with pytest.raises(RuntimeError, match="was not started"):
                await early
        with pytest.raises(UnknownRequest, match="got 'x'"):
            await batcher.result("x")
        assert batcher.get_batch_metrics().num_answered == 0
        await batcher.start_processing()
        with pytest.raises(RuntimeError, match="started before"):
            await batcher.start_processing()
        with pytest.raises(ValueError, match="limit: got 0"):
            batcher.get_batch_history(0)
        await batcher.stop_processing()

    run_virtual(main())


def test_wrong_settings_are_configuration_errors() -> None:
    with pytest.raises(ConfigError, match=r"custom_config.composition.colour: got 1"):
        DynamicBatcher(upper, custom_config={"composition": {"colour": 1}})


def test_all_names_are_there_and_importing_them_is_light() -> None:
    for name in capibench.batching.__all__:
        assert getattr(capibench.batching, name) is not None
        assert name in dir(capibench.batching)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = capibench.batching.Nothing
    code = (
        "import sys; from capibench.batching import DynamicBatcher, BatchStrategy; "
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
