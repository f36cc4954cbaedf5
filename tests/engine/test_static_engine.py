"""The real engine on a tiny model: same tokens batched and alone, exact lengths, honest times."""

import asyncio

import pytest
import torch
from held_passes import held
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import NUM_POSITIONS, load_tiny, save_tiny

from capibench.engine.decoding import decode
from capibench.engine.engine import GenerationRequest
from capibench.engine.transformers_static import TransformersStatic
from capibench.errors import RequestFailed

PROMPTS = ["hello world", "a", "the quick brown fox jumps over it", "xyz 123", "a", "é\n\tü"]
LENGTHS = [5, 20, 1, 9, 20, 13]
BATCH = [GenerationRequest(p, n) for p, n in zip(PROMPTS, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("tiny")))


def with_engine(model, use, num_workers=1, kv_cache="native"):
    async def main():
        engine = TransformersStatic(num_workers, kv_cache)
        await engine.start(model)
        try:
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


def transformers_tokens(model, prompt, num_tokens):
    """The reference: Transformers' own greedy search, alone and without a cache of ours."""
    ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    out = model.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()


def test_batched_equals_transformers_alone(model):
    ids = [model.tokenizer(p)["input_ids"] for p in PROMPTS]
    rows = decode(model.module, ids, LENGTHS, now=lambda: 0.0)
    for prompt, length, row in zip(PROMPTS, LENGTHS, rows, strict=True):
        assert row.tokens == transformers_tokens(model, prompt, length), prompt


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(4, 259), min_size=1, max_size=24), st.integers(1, 12)),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_the_same_in_any_company(model, rows):
    """Whatever stands beside it and whenever its neighbours finish and leave."""
    together = decode(model.module, [p for p, _ in rows], [n for _, n in rows], now=lambda: 0.0)
    for (prompt, length), row in zip(rows, together, strict=True):
        alone = decode(model.module, [prompt], [length], now=lambda: 0.0)[0]
        assert row.tokens == alone.tokens
        assert len(row.tokens) == length


def test_times_are_those_of_the_steps(model):
    clock = iter(range(100))
    rows = decode(
        model.module, [[5, 6], [7], [8, 9, 10]], [3, 1, 2], now=lambda: float(next(clock))
    )
    assert [row.first_token_s for row in rows] == [0.0, 0.0, 0.0]
    assert [row.last_token_s for row in rows] == [2.0, 0.0, 1.0]
    assert next(clock) == 3  # a step per token of the longest row, none after it


def test_finished_rows_leave_the_batch(model):
    sizes = []

    def count(module, args, kwargs):
        sizes.append(kwargs["input_ids"].shape[0])

    handle = model.module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        decode(model.module, [[5], [6, 7], [8]], [1, 4, 2], now=lambda: 0.0)
    finally:
        handle.remove()
    assert sizes == [3, 2, 1, 1]


def test_generations_are_in_request_order_with_exact_counts(model):
    answers = with_engine(model, lambda engine: engine.generate(BATCH, worker=0))
    for request, answer in zip(BATCH, answers, strict=True):
        tokens = transformers_tokens(model, request.prompt, request.max_new_tokens)
        assert answer.text == model.tokenizer.decode(tokens)
        assert answer.output_tokens == request.max_new_tokens
        assert answer.prompt_tokens == len(request.prompt.encode())
    assert answers[1].text == answers[4].text


def test_token_times_are_on_the_loops_clock(model):
    async def use(engine):
        now = asyncio.get_running_loop().time
        begin_s = now()
        answers = await engine.generate(BATCH, worker=0)
        return begin_s, answers, now()

    begin_s, answers, end_s = with_engine(model, use)
    for request, answer in zip(BATCH, answers, strict=True):
        assert begin_s < answer.first_token_s <= answer.last_token_s < end_s
        assert (answer.first_token_s == answer.last_token_s) == (request.max_new_tokens == 1)


def test_the_event_loop_stays_free_while_generating(model):
    async def use(engine):
        with held(model.module, 1) as let_go:
            task = asyncio.create_task(engine.generate(BATCH, worker=0))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
            let_go(1)
            await task

    with_engine(model, use)


def test_workers_answer_independently(model):
    async def use(engine):
        assert engine.num_workers == 2
        return await asyncio.gather(engine.generate(BATCH, 0), engine.generate(BATCH[:2], 1))

    first, second = with_engine(model, use, num_workers=2)
    assert [a.text for a in first[:2]] == [a.text for a in second]


def test_special_tokens_stay_in_the_text(model):
    """The prompt form reads the end of an answer from them."""
    question = model.tokenizer("<|question|>why")["input_ids"]
    assert question[0] == 1
    assert model.tokenizer.decode(question, skip_special_tokens=False) == "<|question|>why"


def test_prompt_too_long_is_refused_before_it_is_queued(model):
    async def use(engine):
        assert engine.count_tokens("a" * (NUM_POSITIONS - 1)) == NUM_POSITIONS - 1
        assert engine.count_tokens("a" * 90, 6) == 90
        with pytest.raises(RequestFailed, match="prompt of 96 tokens plus 1 new ones exceeds the"):
            engine.count_tokens("a" * NUM_POSITIONS)
        with pytest.raises(RequestFailed, match=f"model's {NUM_POSITIONS} positions; expected"):
            engine.count_tokens("a" * 90, 7)
        with pytest.raises(RequestFailed, match="no tokens"):
            engine.count_tokens("")
        with pytest.raises(RequestFailed, match="prompt of 90 tokens plus 7 new ones"):
            await engine.generate([GenerationRequest("a" * 90, 7)], worker=0)
        with pytest.raises(RequestFailed, match="max_new_tokens is 0; expected at least 1"):
            await engine.generate([GenerationRequest("a", 0)], worker=0)
        return (await engine.generate([GenerationRequest("a" * 90, 6)], worker=0))[0]

    assert with_engine(model, use).output_tokens == 6


def test_describes_what_is_really_used(model):
    async def use(engine):
        return engine.describe()

    described = with_engine(model, use)
    assert described["attention"] == "sdpa"
    assert described["dtype"] == "float32"
    assert described["threads_per_worker"] >= 1


def test_choice(choice):
    engine = choice("engine", "transformers_static")
    assert (engine.modeled, engine.needs_model, engine.num_workers) == (False, True, 1)
    with pytest.raises(ValueError, match="num_workers: got 0; expected at least 1"):
        TransformersStatic(0, "native")
