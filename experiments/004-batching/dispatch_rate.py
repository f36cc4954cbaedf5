"""How many requests per second the batcher itself can move: a batch that does nothing, 64 clients.

    python experiments/004-batching/dispatch_rate.py
    python experiments/004-batching/dispatch_rate.py --strategies greedy --public --repeats 9

64 closed-loop clients of five priorities, each request with a deadline, metrics on. Each client
asks again as soon as it is answered, so the figure is the batcher's own cost and nothing else.
`--public` goes through `DynamicBatcher` (ids, kept results), otherwise through the `Batcher` that
serves the pipeline. Where async-batcher is installed (development only) it runs beside them,
without priorities, deadlines and metrics, which it has not. Runs are interleaved; the table shows
the median of the repeats and their range. One JSON line a case at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

from omegaconf import OmegaConf

from capibench.batching import BatchStrategy, DynamicBatcher, RequestPriority
from capibench.batching.batcher import Batcher
from capibench.config import build, conf_dir

NUM_CLIENTS = 64
PRIORITIES = list(RequestPriority)
Case = Callable[[int], Awaitable[float]]  # requests → requests/s


async def nothing(contents: Sequence[int], worker: int = 0) -> Sequence[int]:  # noqa: ARG001
    return contents


async def clients(ask: Callable[[int, RequestPriority], Awaitable[None]], requests: int) -> float:
    """Requests per second of all clients together, none of whom ends before the others."""
    left = iter(range(requests))

    async def client(number: int) -> None:
        priority = PRIORITIES[number % len(PRIORITIES)]
        for _ in left:
            await ask(number, priority)

    begin_s = perf_counter()
    await asyncio.gather(*(client(number) for number in range(NUM_CLIENTS)))
    return requests / (perf_counter() - begin_s)


def through_batcher(name: str) -> Case:
    async def run(requests: int) -> float:
        node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "batching" / f"{name}.yaml"))
        built = build(node, "batching")  # type: ignore[arg-type]
        batcher: Batcher[int, int] = Batcher(
            nothing, built.strategy, 1, built.max_queue_size, composition=built.composition
        )
        batcher.start()
        now_s = asyncio.get_running_loop().time

        async def ask(number: int, priority: RequestPriority) -> None:
            await batcher.submit(
                number, priority=priority, max_wait_s=1.0, deadline_s=now_s() + 10.0
            )

        rate = await clients(ask, requests)
        await batcher.stop()
        assert batcher.stats().num_in_time == requests
        return rate

    return run


def through_dynamic_batcher(name: str) -> Case:
    async def run(requests: int) -> float:
        strategy = next(known for known in BatchStrategy if known.choice == name)
        batcher: DynamicBatcher[int, int] = DynamicBatcher(nothing, strategy)  # type: ignore[arg-type]
        await batcher.start_processing()

        async def ask(number: int, priority: RequestPriority) -> None:
            await batcher.result(await batcher.submit_request(number, priority, deadline_ms=10_000))

        rate = await clients(ask, requests)
        await batcher.stop_processing()
        return rate

    return run


def through_async_batcher() -> Case | None:
    try:
        from async_batcher.batcher import AsyncBatcher
    except ImportError:
        return None

    class Nothing(AsyncBatcher[int, int]):  # type: ignore[misc]
        async def process_batch(self, batch: list[int]) -> list[int]:
            return batch

    async def run(requests: int) -> float:
        batcher: Any = Nothing(max_batch_size=32, max_queue_time=0.001)

        async def ask(number: int, _: RequestPriority) -> None:
            await batcher.process(item=number)

        rate = await clients(ask, requests)
        await batcher.stop()
        return rate

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--strategies", nargs="+", default=[strategy.choice for strategy in BatchStrategy]
    )
    parser.add_argument("--public", action="store_true", help="through DynamicBatcher as well")
    chosen = parser.parse_args()
    cases: dict[str, Case] = {name: through_batcher(name) for name in chosen.strategies}
    if chosen.public:
        cases |= {f"{name}, by id": through_dynamic_batcher(name) for name in chosen.strategies}
    other = through_async_batcher()
    if other is not None:
        cases["async-batcher"] = other
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(chosen.repeats):
        for name, case in cases.items():
            rates[name].append(asyncio.run(case(chosen.requests)))  # type: ignore[arg-type]
    for name, measured in rates.items():
        middle = statistics.median(measured)
        print(f"{name:24} {middle:10,.0f}/s   {min(measured):,.0f} to {max(measured):,.0f}")
    for name, measured in rates.items():
        print(json.dumps({"case": name, "requests_per_s": measured}))


if __name__ == "__main__":
    main()
