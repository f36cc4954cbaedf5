"""Strategies over workers that are processes: one may die while it serves, and batches may join.

With an engine without a model, whose prompts say what goes wrong (`replica_engines`). The same with
a model: tests/engine/test_replicas.py, and every choice of a run: tests/e2e.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from choice_files import load_choice
from replica_engines import Obedient

from capibench.batching.batcher import Batcher
from capibench.config import build
from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.replicas import Replicas
from capibench.errors import WorkerBroken

Made = Batcher[GenerationRequest, Generation]


def serve(strategy: str, use: Callable[[Made, Replicas], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = Replicas([1, 1], False, 20.0, Obedient("", ""))
        await engine.start(None)
        built = build(load_choice("batching", strategy), "batching")
        made: Made = Batcher(engine.generate, built.strategy, engine.num_workers, 1000)
        made.start()
        try:
            await use(made, engine)
        finally:
            await made.stop()
            await engine.stop()

    asyncio.run(asyncio.wait_for(main(), 200))


async def say(made: Made, prompt: str) -> str:
    return (await made.submit(GenerationRequest(prompt, 1))).value.text.split()[1]


def test_a_process_that_dies_costs_its_batch_and_the_others_are_answered() -> None:
    prompts = [f"x{number}" for number in range(60)]
    prompts[20] = "die"

    async def use(made: Made, engine: Replicas) -> None:
        ends = []
        for prompt in prompts:  # one by one, so that each batch is one request
            ends += await asyncio.gather(say(made, prompt), return_exceptions=True)
        lost = [number for number, end in enumerate(ends) if isinstance(end, WorkerBroken)]
        assert lost == [20]
        assert [end for end in ends if isinstance(end, str)] == [p for p in prompts if p != "die"]
        assert engine.describe()["restarts"] == 1
        crowd = [f"y{number}" for number in range(100)]
        assert await asyncio.gather(*(say(made, prompt) for prompt in crowd)) == crowd

    serve("load_balanced", use)


def test_who_joins_a_busy_process_is_answered_beside_what_runs_there() -> None:
    async def use(made: Made, engine: Replicas) -> None:
        long = [asyncio.create_task(say(made, "wait")) for _ in range(4)]
        prompts = [f"x{number}" for number in range(40)]
        assert await asyncio.gather(*(say(made, prompt) for prompt in prompts)) == prompts
        assert not any(task.done() for task in long)
        assert min(made.stats().busy_s) > 0  # both processes serve
        for task in long:
            task.cancel()
        await engine.stop()  # what still runs there fails: the batcher need not wait for it

    serve("continuous", use)
