"""Several workers of which one fails or hangs: its load goes to the others, and nobody waits for
ever. In virtual time through the real batcher, by `load_balanced` where nothing else is said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from choice_files import choices, load_choice

from capibench.batching import BatchStrategy, DynamicBatcher
from capibench.batching.batcher import Batcher
from capibench.batching.request import Answered
from capibench.clock import run_virtual
from capibench.config import build
from capibench.errors import RequestFailed, WorkerBroken

Serve = Callable[[Sequence[int], int], Awaitable[Sequence[int]]]
NUM, GAP_S = 400, 0.01
STATIC = [name for name in choices("batching") if name != "continuous"]


class Workers:
    """Each takes 10 + 2n ms; number 1 fails at once while it is `broken`, or never ends."""

    def __init__(self, broken: Callable[[float], str]) -> None:
        self.broken = broken  # by the time: "", "raises", "dies" or "hangs"
        self.given = [0, 0, 0]

    async def __call__(self, contents: Sequence[int], worker: int) -> Sequence[int]:
        self.given[worker] += len(contents)
        how = self.broken(asyncio.get_running_loop().time()) if worker == 1 else ""
        if how == "dies":
            raise WorkerBroken("worker 1 is broken")
        if how == "raises":
            raise OSError("no more memory")
        if how == "hangs":
            await asyncio.sleep(1e6)
        await asyncio.sleep(0.010 + 0.002 * len(contents))
        return contents


def serve(workers: Serve, strategy: str = "load_balanced") -> list[Answered[int] | BaseException]:
    """A request every 10 ms; how each ended, in order, when all but a hanging batch has."""

    async def main() -> list[Answered[int] | BaseException]:
        made: Batcher[int, int] = Batcher(
            workers, build(load_choice("batching", strategy), "batching").strategy, 3, NUM
        )
        made.start()
        asked = []
        for number in range(NUM):
            asked.append(asyncio.create_task(made.submit(number, max_wait_s=0.05)))
            await asyncio.sleep(GAP_S)
        await asyncio.wait(asked, timeout=10)
        for task in asked:
            task.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    return run_virtual(main())


@pytest.mark.parametrize("how", ["raises", "dies", "hangs"])
def test_a_broken_worker_costs_few_requests_and_nobody_waits_for_it(how: str) -> None:
    workers = Workers(lambda now_s: how if now_s >= 1.0 else "")
    ends = serve(workers)
    answered = [end for end in ends if isinstance(end, Answered)]
    lost = [number for number, end in enumerate(ends) if not isinstance(end, Answered)]
    assert len(lost) <= NUM * 0.06
    assert all(end.value == number for number, end in enumerate(ends) if isinstance(end, Answered))
    assert max(end.done_s - end.enqueued_s for end in answered) < 0.1
    if how != "hangs":  # of the 300 after it broke, one in twenty at most, and the first few
        assert all(isinstance(ends[number], OSError | WorkerBroken) for number in lost)
        assert not set(lost) & set(range(99))


def test_a_worker_that_is_mended_serves_again() -> None:
    workers = Workers(lambda now_s: "dies" if 0.5 <= now_s < 1.5 else "")
    ends = serve(workers)
    assert all(isinstance(end, Answered) for end in ends[250:])
    before = Workers(lambda now_s: "dies" if now_s >= 0.5 else "")
    serve(before)
    assert workers.given[1] > before.given[1]


def test_where_all_are_broken_all_fail_and_nothing_hangs() -> None:
    async def broken(contents: Sequence[int], worker: int) -> Sequence[int]:
        raise WorkerBroken(f"worker {worker} is broken")

    assert all(isinstance(end, WorkerBroken) for end in serve(broken))


@pytest.mark.parametrize("name", STATIC)
def test_while_a_sound_worker_is_idle_nobody_is_sent_to_a_broken_one(name: str) -> None:
    """Once it is known as such, by every strategy: a failing worker is the first to be idle."""
    workers = Workers(lambda now_s: "raises" if now_s >= 0.5 else "")
    ends = serve(workers, name)
    assert sum(not isinstance(end, Answered) for end in ends) <= NUM * 0.06


def test_replicas_by_the_public_interface() -> None:
    """Callables of their own; one stops working. Who met it is told, the others are answered."""

    async def sound(contents: list[str]) -> list[str]:
        await asyncio.sleep(0.010)
        return [content.upper() for content in contents]

    async def broken(contents: list[str]) -> list[str]:
        raise RequestFailed("out of order")

    async def main() -> None:
        batcher = DynamicBatcher([broken, sound], BatchStrategy.LOAD_BALANCED, max_batch_size=4)
        await batcher.start_processing()
        ids = []
        for number in range(100):
            ids.append(await batcher.submit_request(f"text {number}"))
            await asyncio.sleep(0.005)
        ends = await asyncio.gather(*map(batcher.result, ids), return_exceptions=True)
        failed = [end for end in ends if isinstance(end, RequestFailed)]
        assert 1 <= len(failed) <= 8
        assert len(failed) + sum(end == f"TEXT {n}" for n, end in enumerate(ends)) == 100
        await batcher.stop_processing()

    run_virtual(main())
