"""The twin under virtual time: exact times of iterations that rows join and leave."""

from __future__ import annotations

import asyncio

import pytest
from choice_files import load_choice

from capibench.clock import run_virtual
from capibench.engine.engine import GenerationRequest
from capibench.engine.modeled_continuous import ModeledContinuous
from capibench.errors import ConfigError, RequestFailed

TABLE = {
    "num_workers": 2, "base_s": 0.5, "prefill_s_per_token": 0.01,
    "decode_step_s": {1: 1.0, 2: 1.5, 4: 2.0}, "chars_per_token": 4.0, "max_rows": 4,
    "prefill_chunk_tokens": None,
}  # fmt: skip


def run(jobs, **changes):
    """`jobs`: (seconds at which it comes, prompt tokens, new tokens). (first, last) times."""

    async def main():
        engine = ModeledContinuous(**{**TABLE, **changes})
        await engine.start(None)

        async def ask(at_s, prompt_tokens, new_tokens):
            await asyncio.sleep(at_s)
            request = GenerationRequest("x" * (4 * prompt_tokens), new_tokens)
            answer = (await engine.generate([request], 0))[0]
            assert (answer.prompt_tokens, answer.output_tokens) == (prompt_tokens, new_tokens)
            assert answer.last_token_s == asyncio.get_running_loop().time()
            return answer.first_token_s, answer.last_token_s

        try:
            return await asyncio.gather(*(ask(*job) for job in jobs))
        finally:
            await engine.stop()

    return run_virtual(main())


def test_alone():
    assert run([(0, 10, 4)]) == [pytest.approx((0.6, 3.6))]


def test_a_later_one_joins_at_the_next_iteration():
    # Iterations end at 0.6, 1.6, then the second one is read beside a step: 1.6 + 1 + 0.2, and
    # both decode: + 1.5; the first one is done and the second goes on alone: + 1.
    assert run([(0, 10, 4), (1.0, 20, 3)]) == [
        pytest.approx((0.6, 4.3)), pytest.approx((2.8, 5.3)),
    ]  # fmt: skip


def test_a_long_prompt_stalls_the_others_no_longer_than_its_piece():
    whole = run([(0, 10, 10), (0.7, 400, 1)])
    pieces = run([(0, 10, 10), (0.7, 400, 1)], prefill_chunk_tokens=100)
    assert whole == [pytest.approx((0.6, 0.6 + 9 + 4.0)), pytest.approx((6.6, 6.6))]
    # The same work in four iterations; the first one has a token every 2 s meanwhile.
    assert pieces == [pytest.approx((0.6, 0.6 + 9 + 4.0)), pytest.approx((9.6, 9.6))]


def test_prompts_are_not_padded():
    first, second = run([(0, 10, 1), (0, 90, 1)])
    assert first == second == pytest.approx((1.5, 1.5))


def test_one_call_ends_with_its_last_row():
    async def main():
        engine = ModeledContinuous(**TABLE)
        await engine.start(None)
        batch = [GenerationRequest("x" * 40, n) for n in (1, 3)]
        answers = await engine.generate(batch, 1)
        return answers, asyncio.get_running_loop().time()

    answers, end_s = run_virtual(main())
    assert [a.last_token_s for a in answers] == pytest.approx([0.7, 2.7])
    assert end_s == pytest.approx(2.7)


def test_refusals():
    async def main():
        engine = ModeledContinuous(**TABLE)
        with pytest.raises(RequestFailed, match="not running"):
            await engine.generate([GenerationRequest("x", 1)], 0)
        await engine.start(None)
        with pytest.raises(RequestFailed, match="max_new_tokens is 0; expected at least 1"):
            await engine.generate([GenerationRequest("x", 0)], 0)
        running = asyncio.create_task(engine.generate([GenerationRequest("x", 9)] * 3, 0))
        await asyncio.sleep(0)
        with pytest.raises(RequestFailed, match=r"5 requests at once .* engine\.max_rows=4"):
            await engine.generate([GenerationRequest("x", 1)] * 2, 0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await engine.generate([GenerationRequest("x", 1)] * 4, 0)  # there is room again
        running = asyncio.create_task(engine.generate([GenerationRequest("x", 9)], 0))
        await asyncio.sleep(1)
        await engine.stop()
        with pytest.raises(RequestFailed, match="the engine was stopped"):
            await running

    run_virtual(main())


def test_wrong_knobs(choice):
    for knob in ("max_rows", "prefill_chunk_tokens"):
        with pytest.raises(ConfigError, match=rf"engine\.{knob}: got 0; expected at least 1"):
            choice("engine", "modeled_continuous", **{knob: 0})


def test_its_table_is_that_of_the_modeled_engine():
    table, twin = load_choice("engine", "modeled"), load_choice("engine", "modeled_continuous")
    assert {name: twin[name] for name in table if name != "_target_"} == {
        name: value for name, value in table.items() if name != "_target_"
    }
