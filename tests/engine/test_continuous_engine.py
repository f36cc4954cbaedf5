"""The engine around the rows: joining while it runs, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from held_passes import held
from tiny_llama import NUM_POSITIONS, load_tiny, save_tiny
from transformers import MistralConfig, MistralForCausalLM

from capibench.engine.decoding import decode
from capibench.engine.engine import GenerationRequest
from capibench.engine.kv_bytes import count_kv_bytes
from capibench.engine.transformers_continuous import TransformersContinuous
from capibench.errors import ConfigError, RequestFailed

PROMPTS = ["hello world", "a", "the quick brown fox jumps over it", "xyz 123", "a", "é\n\tü"]
LENGTHS = [5, 20, 1, 9, 20, 13]
BATCH = [GenerationRequest(p, n) for p, n in zip(PROMPTS, LENGTHS, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path):
    return load_tiny(save_tiny(tmp_path))


def with_engine(model, use, **knobs):
    values = {
        "num_workers": 1, "max_rows": 8, "kv_cache": "native", "prefill_chunk_tokens": None,
        "prefix_cache_bytes": None, **knobs,
    }  # fmt: skip

    async def main():
        engine = TransformersContinuous(**values)
        await engine.start(model)
        try:
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(asyncio.wait_for(main(), timeout=200))


def texts(model, kv_cache="native"):
    ids = [model.tokenizer(p)["input_ids"] for p in PROMPTS]
    rows = decode(model.module, ids, LENGTHS, now=lambda: 0.0, kv_cache=kv_cache)
    return [model.tokenizer.decode(row.tokens) for row in rows]


@pytest.mark.parametrize("kv_cache", ["native", "int8"])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("prefix_bytes", [None, 10**6])
def test_answers_are_those_of_the_static_engine(model, kv_cache, chunk, prefix_bytes):
    """Together in one call, one call each, and a second time."""

    async def use(engine):
        together = await engine.generate(BATCH, 0)
        each = await asyncio.gather(*(engine.generate([request], 0) for request in BATCH))
        return together, [answers[0] for answers in each]

    expected = texts(model, kv_cache)
    together, each = with_engine(
        model, use, kv_cache=kv_cache, prefill_chunk_tokens=chunk, prefix_cache_bytes=prefix_bytes
    )
    for answers in (together, each):
        assert [a.text for a in answers] == expected
        assert [a.output_tokens for a in answers] == LENGTHS
        assert [a.prompt_tokens for a in answers] == [len(p.encode()) for p in PROMPTS]


def test_who_comes_later_joins_and_may_leave_before(model):
    async def use(engine):
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        with held(model.module, 4, 60) as let_go:
            long = asyncio.create_task(engine.generate([GenerationRequest("a", 90)], 0))
            while engine.describe()["iterations"] < 3:
                await asyncio.sleep(0)
            call = asyncio.create_task(engine.generate([GenerationRequest("hello world", 2)], 0))
            await asyncio.sleep(0)
            let_go(4)
            short = await call
            assert not long.done()
            let_go(60)
            (first,), (second,) = await long, short
        assert begin_s < first.first_token_s < second.first_token_s
        assert second.first_token_s < second.last_token_s < first.last_token_s < loop.time()
        return engine.describe()

    described = with_engine(model, use)
    assert described["iterations"] == 90  # the short one cost no iteration of its own
    assert described["mean_decoding_rows"] == pytest.approx(90 / 90)  # 89 and 1


def test_workers_run_independently(model):
    async def use(engine):
        return await asyncio.gather(engine.generate(BATCH, 0), engine.generate(BATCH[:2], 1))

    first, second = with_engine(model, use, num_workers=2)
    assert [a.text for a in first[:2]] == [a.text for a in second] == texts(model)[:2]


def test_the_event_loop_stays_free_while_generating(model):
    async def use(engine):
        with held(model.module, 2) as let_go:
            task = asyncio.create_task(engine.generate(BATCH, 0))
            while engine.describe()["iterations"] < 1:
                await asyncio.sleep(0)
            let_go(2)
            await task

    with_engine(model, use)


def test_a_request_that_cannot_be_served_fails_its_own_call_alone(model):
    async def use(engine):
        for prompt, tokens, message in (
            ("a" * NUM_POSITIONS, 1, "prompt of 96 tokens plus 1 new ones exceeds the model's 96"),
            ("", 1, "no tokens"),
            ("a", 0, "max_new_tokens is 0; expected at least 1"),
        ):
            good = asyncio.create_task(engine.generate(BATCH[:1], 0))
            with pytest.raises(RequestFailed, match=message):
                await engine.generate([BATCH[1], GenerationRequest(prompt, tokens)], 0)
            assert (await good)[0].text == expected
        with pytest.raises(RequestFailed, match="prompt of 90 tokens plus 7 new ones"):
            engine.count_tokens("a" * 90, 7)
        assert engine.count_tokens("a" * 90, 6) == 90
        assert await engine.generate([], 0) == []

    expected = texts(model)[0]
    with_engine(model, use)


def test_more_rows_than_allowed_are_refused_and_room_is_given_back(model):
    async def use(engine):
        running = [asyncio.create_task(engine.generate([request], 0)) for request in BATCH[:2]]
        await asyncio.sleep(0)
        with pytest.raises(RequestFailed, match=r"3 requests at once .* engine\.max_rows=2; expec"):
            await engine.generate(BATCH[2:3], 0)
        await asyncio.gather(*running)
        return await engine.generate(BATCH[:2], 0)

    assert [a.text for a in with_engine(model, use, max_rows=2)] == texts(model)[:2]


def test_a_caller_that_gives_up_frees_its_rows(model):
    async def use(engine):
        with held(model.module, 3) as let_go:
            long = asyncio.create_task(engine.generate([GenerationRequest("a", 90)], 0))
            other = asyncio.create_task(engine.generate(BATCH[:1], 0))
            while engine.describe()["iterations"] < 2:
                await asyncio.sleep(0)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            let_go(3)
        assert (await other)[0].text == expected
        answers = await engine.generate(BATCH[:2], 0)  # there is room again
        return answers, engine.describe()["iterations"]

    expected = texts(model)[0]
    answers, iterations = with_engine(model, use, max_rows=2)
    assert [a.text for a in answers] == texts(model)[:2]
    assert iterations < 90


class Breaking:
    """Makes one pass of the model fail, as a lack of memory would."""

    def __init__(self, module, at):
        self.passes, self.at = 0, at
        self._handle = module.register_forward_pre_hook(self._count)

    def _count(self, module, args):
        self.passes += 1
        if self.passes == self.at:
            raise MemoryError("not enough for this pass")

    def remove(self):
        self._handle.remove()


def test_an_iteration_that_fails_fails_its_rows_and_the_engine_goes_on(model):
    async def use(engine):
        breaking = Breaking(model.module, at=4)
        with held(model.module, 1) as let_go:
            calls = [asyncio.create_task(engine.generate([request], 0)) for request in BATCH]
            await asyncio.sleep(0)  # all have asked
            let_go(1)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        breaking.remove()
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        for error in failed:
            assert isinstance(error, RequestFailed)
            assert str(error) == (
                "an iteration of the engine failed: MemoryError: not enough for this pass"
            )
        assert len({id(error) for error in failed}) == len(failed) == 5
        answered = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert [a[0].text for a in answered] == [expected[2]]  # it had left before
        return await engine.generate(BATCH, 0)

    expected = texts(model)
    assert [a.text for a in with_engine(model, use)] == expected


def test_stop_ends_what_runs(model):
    async def use(engine):
        running = asyncio.create_task(engine.generate([GenerationRequest("a", 90)], 0))
        while engine.describe()["iterations"] < 2:
            await asyncio.sleep(0)
        await engine.stop()
        with pytest.raises(RequestFailed, match="the engine was stopped"):
            await running
        with pytest.raises(RequestFailed, match="the engine is not running"):
            await engine.generate(BATCH, 0)
        await engine.start(model)  # and it may begin again
        return await engine.generate(BATCH, 0)

    assert [a.text for a in with_engine(model, use)] == texts(model)
    assert model.module.config._attn_implementation == "sdpa"


def test_a_loop_that_dies_without_stopping_leaves_no_thread_that_waits(model):
    """As after an error in the run: the event loop is gone while an iteration is under way."""
    engine = TransformersContinuous(1, 8, "native", None, None)

    async def main():
        await engine.start(model)
        task = asyncio.create_task(engine.generate([GenerationRequest("a", 90)], 0))
        while engine.describe()["iterations"] < 2:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    asyncio.run(engine.stop())


def test_describes_what_is_really_used(model):
    async def use(engine):
        before = engine.describe()
        await engine.generate(BATCH, 0)
        shared = "the same beginning of more than a block, and then "
        for end in ("this", "that", "something else"):
            await engine.generate([GenerationRequest(shared + end, 2)], 0)
        return before, engine.describe()

    before, after = with_engine(model, use, prefix_cache_bytes=10**6, prefill_chunk_tokens=7)
    assert before["attention"].startswith("sdpa, packed")
    assert (before["dtype"], before["max_rows"], before["iterations"]) == ("float32", 8, 0)
    assert before["prefill"] == "at most 7 tokens per iteration"
    counted = count_kv_bytes(model.module, "native")
    assert before["kv_bytes_per_token"] == counted.held == after["kv_bytes_per_token"]
    assert before["kv_reserved_bytes"] < after["kv_reserved_bytes"]
    assert "prefix_hit_rate" not in before
    assert after["prefix_reused_tokens"] == 2 * 48
    assert after["prefix_hit_rate"] == 96 / after["prefix_prompt_tokens"]
    assert 0 < after["prefix_cache_bytes"] <= 10**6

    async def describe(engine):
        return engine.describe()

    rounded = with_engine(model, describe, kv_cache="int8")
    counted = count_kv_bytes(model.module, "int8")
    assert (
        rounded["kv_bytes_per_token"], rounded["kv_bytes_per_token_native"],
        rounded["kv_transient_bytes_per_token"],
    ) == (counted.held, counted.native, counted.transient)  # fmt: skip


def test_prefixes_do_not_outlive_the_model(model, tmp_path):
    other = load_tiny(save_tiny(tmp_path / "other", seed=1))
    engine = TransformersContinuous(1, 8, "native", None, 10**6)
    request = GenerationRequest("a prompt of more than one block", 8)

    async def answer(model):
        await engine.start(model)
        try:
            return (await engine.generate([request], 0))[0].text, engine.describe()
        finally:
            await engine.stop()

    asyncio.run(answer(model))
    text, described = asyncio.run(answer(other))
    assert described["prefix_reused_tokens"] == 0
    assert text == asyncio.run(answer(other))[0]


@pytest.mark.parametrize(
    ("knob", "value"),
    [("num_workers", 0), ("max_rows", 0), ("prefill_chunk_tokens", 0), ("prefix_cache_bytes", -1)],
)
def test_wrong_knobs(choice, knob, value):
    with pytest.raises(ConfigError, match=rf"engine\.{knob}: got {value}; expected at least 1"):
        choice("engine", "transformers_continuous", **{knob: value})


def test_knobs_that_do_not_fit_the_model(model):
    async def use(engine):
        raise AssertionError("it must not start")

    with pytest.raises(ConfigError, match=r"engine\.prefix_cache_bytes: got 100; expected at lea"):
        with_engine(model, use, prefix_cache_bytes=100)
    config = MistralConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=300, max_position_embeddings=64, sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    windows = replace(model, module=MistralForCausalLM(config).eval())
    with pytest.raises(ConfigError, match=r"engine\.kv_cache: got 'int8', but"):
        with_engine(windows, use, kv_cache="int8")
