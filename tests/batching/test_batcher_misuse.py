"""What users do wrong, or their functions do oddly: one clear error, and nobody else is hurt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from capibench.batching import (
    BatchOutcome,
    BatchStrategy,
    DynamicBatcher,
    RequestState,
    WorkerBroken,
)
from capibench.batching.batcher import Batcher
from capibench.batching.own_error import own_error
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategy import Dispatch, QueueView
from capibench.clock import run_virtual
from capibench.errors import BatcherBroken, ConfigError, RequestFailed


async def double(contents: list[Any]) -> list[Any]:
    await asyncio.sleep(0.01)
    return [2 * content for content in contents]


async def quadruple(contents: Sequence[int], worker: int) -> list[int]:
    return [4 * content for content in contents]


async def started(
    process: Callable[..., Any] = double,
    strategy: BatchStrategy = BatchStrategy.GREEDY,
    **arguments: Any,
) -> DynamicBatcher[Any, Any]:
    batcher: DynamicBatcher[Any, Any] = DynamicBatcher(process, strategy, **arguments)
    await batcher.start_processing()
    return batcher


async def ends(batcher: DynamicBatcher[Any, Any], contents: Sequence[Any]) -> list[Any]:
    ids = [await batcher.submit_request(content) for content in contents]
    waiting = (batcher.result(request_id) for request_id in ids)
    return await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("strategy", list(BatchStrategy))
@pytest.mark.parametrize("wrong", ["3", 1.5, None, float("nan"), -5], ids=repr)
def test_a_wrong_size_is_refused_alone(strategy: BatchStrategy, wrong: object) -> None:
    async def main() -> None:
        batcher = await started(
            strategy=strategy, count_tokens=lambda n: wrong if n == 1 else np.int64(3)
        )
        for _ in range(2):
            good = await batcher.submit_request(0)
            with pytest.raises(ValueError, match=r"count_tokens: got .*; expected a whole number"):
                await batcher.submit_request(1)
            assert await batcher.result(good) == 0
            assert await ends(batcher, [2, 3]) == [4, 6]
        await batcher.stop_processing()
        assert batcher.get_batch_metrics().num_answered == 6

    run_virtual(main())


def test_a_fault_between_queue_and_worker_loses_nobody() -> None:
    class Odd(Greedy):
        def decide(self, view: QueueView) -> Dispatch:
            return Dispatch([0], 0, ["no", "text"])  # type: ignore[arg-type]

    async def main() -> None:
        made: Batcher[int, int] = Batcher(quadruple, Odd(4), 1, 10)
        made.start()
        with pytest.raises(ValueError, match="num_tokens: got '3'"):
            await made.submit(0, num_tokens="3")  # type: ignore[arg-type]
        told = await asyncio.gather(*(made.submit(n) for n in range(3)), return_exceptions=True)
        assert all(isinstance(error, BatcherBroken) for error in told)
        assert isinstance(getattr(told[0], "__cause__", None), TypeError)
        with pytest.raises(BatcherBroken, match="cannot go on: TypeError: unhashable"):
            await made.submit(9)
        await made.stop()
        assert made.stats().num_failed == 3

    run_virtual(main())


def test_callbacks_may_stop_the_batcher_all_at_once() -> None:
    async def main() -> None:
        seen: list[int] = []

        async def stops(outcome: BatchOutcome[int]) -> None:
            await batcher.stop_processing()
            await asyncio.sleep(1)
            seen.append(outcome.result or 0)

        async def is_slow(outcome: BatchOutcome[int]) -> None:
            await asyncio.sleep(0.5)
            seen.append(outcome.result or 0)

        batcher = await started()
        for n, callback in ((1, stops), (2, stops), (3, is_slow)):
            await batcher.submit_request(n, callback=callback)
        async with asyncio.timeout(10):
            await batcher.stop_processing()
        assert seen == [6, 2, 4]

    run_virtual(main())


def test_stopping_inside_process_batch_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        async def stops(contents: list[int]) -> list[str]:
            try:
                await batcher.stop_processing()
            except RuntimeError as error:
                return [str(error)] * len(contents)
            return []

        batcher = await started(stops)
        for _ in range(2):
            (told,) = await ends(batcher, [1])
            assert told.startswith("stop: awaited inside process_batch")
        await batcher.stop_processing()

    run_virtual(main())


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("strategy", [BatchStrategy.GREEDY, BatchStrategy.CONTINUOUS])
def test_an_engine_that_hangs_is_given_up_at_the_timeout(
    drain: bool, strategy: BatchStrategy
) -> None:
    async def main() -> None:
        async def hangs(contents: list[int]) -> list[int]:
            await asyncio.sleep(1e6)
            return contents

        batcher = await started(hangs, strategy, max_batch_size=2)
        ids = [await batcher.submit_request(n) for n in range(3)]
        await asyncio.sleep(1)
        await batcher.stop_processing(drain, timeout_ms=500)
        assert asyncio.get_running_loop().time() == pytest.approx(1.5)
        for request_id in ids[:2]:
            with pytest.raises(RequestFailed, match=r"not served within 0.5 s"):
                await batcher.result(request_id)
        with pytest.raises(RequestFailed, match="before it was served"):
            await batcher.result(ids[2])
        assert batcher.get_batch_metrics().num_running == 0

    run_virtual(main())


def test_an_engine_that_cancels_itself_fails_the_culprit_alone() -> None:
    async def main() -> None:
        async def cancels(contents: list[int]) -> list[int]:
            if 2 in contents:
                raise asyncio.CancelledError
            return contents

        batcher = await started(cancels)
        told = await ends(batcher, range(4))
        assert isinstance(told.pop(2), RequestFailed)
        assert told == [0, 1, 3]
        await batcher.stop_processing()

    run_virtual(main())


class Frame(dict[str, Any]):
    """An array by its `ndim`, a mapping by its keys."""

    ndim = 2


@pytest.mark.parametrize(
    "results",
    [None, {0: 0, 1: 2}, "ab", b"ab", {"a", "b"}, (n for n in range(2)), 7, np.array(3), Frame()],
    ids=lambda results: type(results).__name__,
)
def test_results_of_nobody_are_refused_without_another_try(results: Any) -> None:
    async def main() -> None:
        async def odd(contents: list[int]) -> Any:
            return results

        batcher = await started(odd)
        for error in await ends(batcher, [0, 1]):
            assert isinstance(error, WorkerBroken)
            assert f"returned a {type(results).__name__} for 2 items; expected" in str(error)
        assert batcher.get_batch_metrics().num_calls == 1
        await batcher.stop_processing()

    run_virtual(main())


@pytest.mark.parametrize("made", [tuple, deque, np.array, lambda values: np.array([values]).T])
def test_sequences_and_arrays_are_results(made: Callable[[list[int]], Any]) -> None:
    async def main() -> None:
        async def process(contents: list[int]) -> Any:
            return made(contents)

        batcher = await started(process)
        assert await ends(batcher, [4, 5]) == [4, 5]
        await batcher.stop_processing()

    run_virtual(main())


def test_another_event_loop_is_refused_at_once() -> None:
    loops = asyncio.new_event_loop(), asyncio.new_event_loop()
    batcher = loops[0].run_until_complete(started())
    request_id = loops[0].run_until_complete(batcher.submit_request(1))
    done_id = loops[0].run_until_complete(batcher.submit_request(2, max_wait_time_ms=0))
    for call in (
        batcher.submit_request(3),
        batcher.result(request_id),
        batcher.stop_processing(),
        anext(batcher.watch_batch_metrics()),
    ):
        with pytest.raises(RuntimeError, match=r"called in another event loop; expected"):
            loops[1].run_until_complete(call)
    with pytest.raises(RuntimeError, match="cancel: called outside any event loop"):
        batcher.cancel_request(request_id)
    loops[0].run_until_complete(batcher.stop_processing())
    assert loops[1].run_until_complete(batcher.result(done_id)) == 4  # it has ended: that is safe
    loops[1].run_until_complete(batcher.stop_processing())
    for loop in loops:
        loop.close()


def test_a_full_batch_is_not_held_back_for_its_number() -> None:
    async def main() -> None:
        batcher = await started(
            min_batch_size=8,
            max_wait_time_ms=500,
            count_tokens=lambda _: 50,
            custom_config={"composition": {"max_batch_tokens": 100}},
        )
        ids = [await batcher.submit_request(n) for n in range(5)]
        for request_id in ids:
            await batcher.result(request_id)
        history = batcher.get_batch_history()[::-1]
        assert [batch.size for batch in history] == [2, 2, 1]
        left = [round(batch.dispatched_s, 6) for batch in history]
        assert left == [0.0, 0.01, 0.5]
        settings = batcher.get_batcher_stats()["settings"]
        assert (settings["min_batch_size"], settings["max_wait_time_ms"]) == (8, 500)
        with pytest.raises(ConfigError, match=r"^custom_config.composition.max_batch_tokens: got"):
            DynamicBatcher(double, custom_config={"composition": {"max_batch_tokens": 0}})
        await batcher.stop_processing()

    run_virtual(main())


def test_a_budget_error_names_what_the_user_gave() -> None:
    async def main() -> None:
        batcher = await started(
            count_tokens=len, custom_config={"composition": {"max_batch_tokens": 2}}
        )
        with pytest.raises(
            ConfigError, match=r"^custom_config.composition.max_batch_tokens: got 2"
        ):
            await batcher.submit_request("long")
        assert batcher.get_batch_metrics().num_rejected == 1
        await batcher.stop_processing()

    run_virtual(main())


class Named(Exception):
    def __init__(self, who: str, *, code: int) -> None:
        super().__init__(f"{who} failed")
        self.code = code


def decode_error() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), FileNotFoundError(2, "gone", "name"), KeyError("k"), decode_error(),
        Named("it", code=5), ConfigError("a.b", "got 1"), ImportError("no", name="module"),
        ExceptionGroup("two", [ValueError("one")]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_ones_own_says_the_same(error: Exception) -> None:
    error.__cause__ = OSError("below")
    error.add_note("seen")
    twin = own_error(error)
    assert twin is not error
    assert (type(twin), str(twin), repr(twin)) == (type(error), str(error), repr(error))
    assert (twin.args, vars(twin), twin.__cause__) == (error.args, vars(error), error.__cause__)
    for name in ("code", "filename", "name"):
        assert getattr(twin, name, None) == getattr(error, name, None)


def depth(error: BaseException) -> int:
    traceback, count = error.__traceback__, 0
    while traceback is not None:
        traceback, count = traceback.tb_next, count + 1
    return count


def test_every_caller_is_told_with_an_error_of_its_own() -> None:
    async def main() -> None:
        async def fails(contents: list[int]) -> list[int]:
            raise ValueError("the same")

        batcher = await started(fails, isolates_failures=False)
        told = [error for error in await ends(batcher, range(4)) if isinstance(error, ValueError)]
        request_id = await batcher.submit_request(9)
        waiting = (batcher.result(request_id) for _ in range(3))
        told += await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(error) for error in told}) == 7
        assert {str(error) for error in told} == {"the same"}
        await batcher.stop_processing()

        made: Batcher[int, int] = Batcher(quadruple, Greedy(4), 1, 10)
        made.start()
        await made.stop()
        depths = set()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="after stop") as caught:
                await made.submit(1)
            depths.add(depth(caught.value))
        assert len(depths) == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_wait_time_ms": None}, "max_wait_time_ms: got None; expected at least 0"),
        ({"max_wait_time_ms": "5"}, "max_wait_time_ms: got '5'"),
        ({"max_wait_time_ms": True}, "max_wait_time_ms: got True"),
        ({"custom_config": {"composition": None}}, "custom_config.composition: got None; expected"),
        ({"custom_config": [1]}, r"custom_config: got \[1\]; expected a mapping"),
        ({"custom_config": {"max_batch_size": 0}}, "custom_config.max_batch_size: got 0"),
        ({"custom_config": {"max_batch_size": 4}, "min_batch_size": 16}, "min_batch_size: got 16"),
        ({"count_tokens": 5}, "count_tokens: got 5; expected a callable"),
        ({"sheds_overdue": "no"}, "sheds_overdue: got 'no'; expected True or False"),
        ({"isolates_failures": 1}, "isolates_failures: got 1; expected True or False"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    for strategy in (BatchStrategy.GREEDY, BatchStrategy.FIXED_SIZE):
        with pytest.raises(ValueError, match=f"^{message}"):
            DynamicBatcher(double, strategy, **arguments)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_wait_time_ms": None}, "max_wait_time_ms: got None"),
        ({"deadline_ms": "3"}, "deadline_ms: got '3'; expected above 0, or None"),
        ({"callback": 5}, "callback: got 5; expected a callable, or None"),
    ],
)
def test_wrong_arguments_of_a_request_are_named(how: dict[str, Any], message: str) -> None:
    async def main() -> None:
        batcher = await started()
        with pytest.raises(ValueError, match=f"^{message}"):
            await batcher.submit_request(1, **how)
        for wrong in (0, float("nan"), "5"):
            with pytest.raises(ValueError, match=r"^interval_ms: got"):
                batcher.watch_batch_metrics(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^timeout_ms: got -1"):
            await batcher.stop_processing(timeout_ms=-1)
        await batcher.stop_processing()
        with pytest.raises(RuntimeError, match="watch_batch_metrics: the batcher was not started"):
            DynamicBatcher(double).watch_batch_metrics()

    run_virtual(main())


def test_the_figures_of_continuous_say_what_ran() -> None:
    async def main() -> None:
        calls: list[int] = []

        async def process(contents: list[int]) -> list[int]:
            calls.append(len(contents))
            await asyncio.sleep(contents[0])
            return contents

        batcher = await started(process, BatchStrategy.CONTINUOUS, max_batch_size=4)
        assert await ends(batcher, [3, 1]) == [3, 1]
        await asyncio.sleep(5)
        metrics = batcher.get_batch_metrics()
        assert (calls, metrics.num_calls, metrics.num_batches) == ([1, 1], 2, 1)
        assert metrics.mean_batch_size == pytest.approx(4 / 3)  # two for 1 s, one for 2 s more
        assert metrics.efficiency == pytest.approx(1 / 3)
        await batcher.stop_processing()

    run_virtual(main())


def test_a_loop_that_only_submits_needs_to_wait_for_room() -> None:
    async def main() -> None:
        batcher = await started(max_queue_size=2, max_batch_size=8)
        ids = [await batcher.submit_request(n, wait_for_room=True) for n in range(20)]
        await batcher.stop_processing()
        states = {batcher.get_request_state(request_id) for request_id in ids}
        assert states == {RequestState.COMPLETED}

    run_virtual(main())
