"""What every choice of conf/engine keeps, whichever it is."""

from __future__ import annotations

import asyncio

import pytest
import torch
from choice_files import choices
from tiny_llama import load_tiny, save_tiny

from capibench.clock import RealTime, VirtualTime
from capibench.engine.engine import GenerationRequest

# Replicas are other engines in processes of their own, started from a recipe: test_replicas.py.
NAMES = [name for name in choices("engine") if name != "replicas"]
BATCH = [
    GenerationRequest(prompt, tokens)
    for prompt, tokens in (("one two three four", 4), ("a b", 1), ("a b c d e f g h i", 2))
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(choice, tmp_path):
    """Runs `use(engine)` between start and stop, on the clock that the engine is made for."""

    def run_engine(name, use):
        engine = choice("engine", name)
        model = load_tiny(save_tiny(tmp_path)) if engine.needs_model else None
        time = VirtualTime() if engine.modeled else RealTime(num_threads=1)

        async def main():
            await engine.start(model)
            try:
                return await use(engine)
            finally:
                await engine.stop()

        return time.run(asyncio.wait_for(main(), timeout=200))

    return run_engine


@pytest.mark.parametrize("name", NAMES)
def test_answers_in_order_with_the_lengths_asked_for(run, name):
    async def use(engine):
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        answers = await engine.generate(BATCH, engine.num_workers - 1)
        for request, answer in zip(BATCH, answers, strict=True):
            assert answer.output_tokens == request.max_new_tokens
            assert answer.prompt_tokens == engine.count_tokens(request.prompt)
            assert begin_s <= answer.first_token_s <= answer.last_token_s <= loop.time()
        described = engine.describe()
        assert all(isinstance(value, str | int | float) for value in described.values())
        return [answer.text for answer in answers]

    assert len(run(name, use)) == len(BATCH)


@pytest.mark.parametrize("name", NAMES)
def test_alone_and_together_say_the_same(run, name):
    async def use(engine):
        together = await engine.generate(BATCH, 0)
        if engine.joins_running:
            each = await asyncio.gather(*(engine.generate([request], 0) for request in BATCH))
        else:
            each = [await engine.generate([request], 0) for request in BATCH]
        return together, [answers[0] for answers in each]

    together, alone = run(name, use)
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.output_tokens for a in together] == [a.output_tokens for a in alone]


@pytest.mark.parametrize("name", NAMES)
def test_stopping_while_it_works_ends_every_call(run, name):
    """With an answer or an error, whichever the engine promises; never with a hang."""

    async def use(engine):
        calls = [asyncio.create_task(engine.generate([request], 0)) for request in BATCH]
        await asyncio.sleep(0)
        await engine.stop()
        return await asyncio.gather(*calls, return_exceptions=True)

    assert len(run(name, use)) == len(BATCH)
