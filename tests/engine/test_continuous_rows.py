"""Rows that join and leave: what each of them says must not depend on anybody or anything else."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import load_tiny, save_tiny
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from capibench.engine.attention_check import check_attention
from capibench.engine.continuous_rows import ContinuousRows, Row
from capibench.engine.decoding import decode
from capibench.engine.prefill_plan import plan_prefill
from capibench.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from capibench.engine.slots import Int8Slots, KvShape, NativeSlots
from capibench.errors import ConfigError
from capibench.quantization.dynamic import DynamicInt8
from capibench.quantization.round_to_nearest import RoundToNearest

STORES = {"native": NativeSlots, "int8": Int8Slots}
SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64,
    "initializer_range": 0.3, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def module(source):
    return load_tiny(source).module


def new_rows(module, kv_cache="native", chunk=None, prefixes=None):
    """The rows of `module`, whose attention is replaced; it goes on answering others."""
    shape, _ = check_attention(module)
    return ContinuousRows(module, STORES[kv_cache](shape), chunk, prefixes)


def drive(rows, jobs):
    """`jobs`: (iteration at which it joins, prompt, new tokens). The rows, in that order."""
    made = [Row(prompt, length) for _, prompt, length in jobs]
    iteration = 0
    finished = []
    while iteration <= max(begin for begin, _, _ in jobs) or rows:
        for row, (begin, _, _) in zip(made, jobs, strict=True):
            if begin == iteration:
                rows.add(row)
        if rows:
            finished += rows.step(now=lambda at=iteration: float(at))
        iteration += 1
    assert sorted(map(id, finished)) == sorted(map(id, made))  # each once
    return made


@contextmanager
def passes(module):
    """Tokens of every forward pass meanwhile, as they come."""
    sizes = []

    def count(module, args, kwargs):
        assert len(kwargs["input_ids"]) == 1
        sizes.append(kwargs["input_ids"].shape[1])

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


def alone(module, prompt, length, kv_cache="native"):
    return decode(module, [prompt], [length], now=lambda: 0.0, kv_cache=kv_cache)[0].tokens


jobs = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.lists(st.integers(4, 259), min_size=1, max_size=40),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25)
@given(jobs, st.sampled_from(["native", "int8"]), st.one_of(st.none(), st.integers(1, 20)))
def test_a_row_is_the_same_in_any_company(module, jobs, kv_cache, chunk):
    """Whoever joins or leaves meanwhile, and in whatever pieces its prompt is read."""
    made = drive(new_rows(module, kv_cache, chunk), jobs)
    for row, (_, prompt, length) in zip(made, jobs, strict=True):
        assert row.tokens == alone(module, prompt, length, kv_cache)
        assert row.num_reused == 0


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(0, 60), st.lists(st.integers(4, 259), max_size=9),
            st.integers(1, 6),
        ),
        min_size=2,
        max_size=7,
    ),
    st.sampled_from(["native", "int8"]),
    st.one_of(st.none(), st.integers(1, 20)),
    st.integers(1, 6),
)  # fmt: skip
def test_a_kept_prefix_changes_nothing(module, wanted, kv_cache, chunk, num_blocks):
    shared = list(range(4, 64))
    jobs = [(at, [*shared[:same], *own, 5], n) for at, same, own, n in wanted]
    shape, _ = check_attention(module)
    budget = num_blocks * shape.empty(BLOCK_TOKENS).nbytes
    prefixes = PrefixCache(budget)
    made = drive(ContinuousRows(module, STORES[kv_cache](shape), chunk, prefixes), jobs)
    for row, (_, prompt, length) in zip(made, jobs, strict=True):
        assert row.tokens == alone(module, prompt, length, kv_cache)
        assert row.num_reused % BLOCK_TOKENS == 0
        assert row.num_reused < len(prompt)
    assert prefixes.nbytes <= budget
    assert prefixes.num_reused_tokens == sum(row.num_reused for row in made)
    assert prefixes.num_prompt_tokens == sum(len(prompt) for _, prompt, _ in jobs)


INT4 = RoundToNearest(
    bits=4,
    group_size=32,
    symmetric=True,
    feedback=None,
    skip_modules=["lm_head"],
    packed_max_rows=32,
)
DYNAMIC = DynamicInt8(kernel="auto", skip_modules=["lm_head"])


@pytest.mark.parametrize("quantization", [INT4, DYNAMIC], ids=["int4", "dynamic"])
@pytest.mark.parametrize("kv_cache", ["native", "int8"])
def test_quantized_models(source, tmp_path, quantization, kv_cache):
    quantization.quantize(load_tiny(source), [], tmp_path)
    model, _ = quantization.load(load_tiny(source), tmp_path)
    texts = ["hello world", "the quick brown fox jumps over", "a", "def f(x): return x + 1"]
    jobs = [
        (number * 2, model.tokenizer(text)["input_ids"], 6 + 3 * number)
        for number, text in enumerate(texts)
    ]
    made = drive(new_rows(model.module, kv_cache, chunk=8), jobs)
    for row, (_, prompt, length) in zip(made, jobs, strict=True):
        assert row.tokens == alone(model.module, prompt, length, kv_cache)


def sliding():
    torch.manual_seed(0)
    mistral = MistralConfig(**SMALL, sliding_window=8)
    qwen = Qwen2Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, use_sliding_window=True,
        sliding_window=8, layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    return [MistralForCausalLM(mistral).eval(), Qwen2ForCausalLM(qwen).eval()]


@pytest.mark.parametrize("module", sliding(), ids=["all", "every second"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_sliding_windows(module, chunk):
    jobs = [(0, list(range(5, 25)), 12), (2, [7, 8], 20), (3, list(range(40, 49)), 4)]
    expected = [alone(module, prompt, length) for _, prompt, length in jobs]
    made = drive(new_rows(module, "native", chunk), jobs)
    assert [row.tokens for row in made] == expected


def test_every_decoding_row_advances_while_prompts_are_read_in_pieces(module):
    """The stall of a long prompt is bounded: so many tokens per pass, whatever waits."""
    rows = new_rows(module, chunk=5)
    short, long, longer = Row([5, 6], 30), Row([7] * 40, 2), Row([8] * 33, 1)
    with passes(module) as sizes:
        rows.add(short)
        rows.step(now=lambda: 0.0)
        rows.add(long)
        rows.add(longer)
        tokens = []
        while rows:
            rows.step(now=lambda: 0.0)
            tokens.append((len(short.tokens), len(long.tokens), len(longer.tokens)))
    assert sizes[0] == 2
    assert max(sizes[1:]) <= 5 + 2  # the piece, and a token for each row that decodes
    assert [row[0] for row in tokens[:29]] == list(range(2, 31))  # never without its next token
    assert tokens.index((9, 1, 0)) == 7  # 40 tokens are eight pieces of five
    assert long.done
    assert longer.done


def test_times_are_those_of_the_iterations(module):
    first, second = drive(new_rows(module), [(0, [5, 6, 7], 4), (2, [8], 1)])
    assert (first.first_token_s, first.last_token_s) == (0.0, 3.0)
    assert (second.first_token_s, second.last_token_s) == (2.0, 2.0)


def test_rows_that_are_dropped_leave_the_others_alone(module):
    rows = new_rows(module, chunk=4)
    prompts = [[5, 6, 7], [9] * 3, [11] * 30, [13, 14]]
    made = [Row(prompt, 10) for prompt in prompts]
    for row in made:
        rows.add(row)
    for _ in range(4):
        rows.step(now=lambda: 0.0)
    rows.drop([made[0], made[2]])  # one that decodes and one that is still read
    while rows:
        rows.step(now=lambda: 0.0)
    assert [len(row.tokens) < 10 for row in made] == [True, False, True, False]
    for row in (made[1], made[3]):
        assert row.tokens == alone(module, row.prompt, 10)


def test_a_full_pass_costs_no_padding(module):
    """Tokens per pass are those that are new: one per decoding row, and the prompts'."""
    rows = new_rows(module)
    with passes(module) as sizes:
        drive(rows, [(0, [5] * 9, 3), (0, [6], 2), (1, [7] * 20, 1)])
    assert sizes == [10, 22, 1]


# Models whose attention does more


def capped():
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, attn_logit_softcapping=0.1, final_logit_softcapping=None)
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()


def test_an_attention_that_does_more_is_refused_and_left_as_it_was():
    module = capped()
    with pytest.raises(ConfigError, match="model: Gemma2ForCausalLM answers otherwise when its"):
        check_attention(module)
    assert module.config._attn_implementation == "eager"


def test_the_model_goes_on_answering_others(source):
    module = load_tiny(source).module
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.no_grad():
        before = module(input_ids=ids, attention_mask=mask).logits
        check_attention(module)
        assert torch.equal(module(input_ids=ids, attention_mask=mask).logits, before)


def test_bf16_models_pass_the_check(source):
    shape, before = check_attention(load_tiny(source, "bf16").module)
    assert (shape.dtype, before) == (torch.bfloat16, "sdpa")
    assert isinstance(load_tiny(source).module, LlamaForCausalLM)


# The parts


@given(st.lists(st.integers(1, 50), max_size=8), st.one_of(st.none(), st.integers(1, 60)))
def test_prefill_is_planned_in_order_and_within_its_bound(unread, bound):
    pieces = plan_prefill(unread, bound)
    assert all(0 < piece <= tokens for piece, tokens in zip(pieces, unread, strict=False))
    if bound is None:
        assert pieces == unread
    else:
        assert sum(pieces) == min(bound, sum(unread))
        assert pieces[:-1] == unread[: len(pieces) - 1] if pieces else not unread


SHAPE = KvShape(layers=1, heads=1, size=1, dtype=torch.float32, device=torch.device("cpu"))
BLOCK_BYTES = SHAPE.empty(BLOCK_TOKENS).nbytes


def numbered(prompt):
    """States that say which prompt they belong to, and where."""
    states = SHAPE.empty(len(prompt))
    total = 0
    for position, token in enumerate(prompt):
        total = (total * 31 + token) % 65521  # of all tokens so far
        states[..., position, 0] = total
    return states


blocks = st.lists(st.integers(0, 1), max_size=4).map(
    lambda kinds: [k for k in kinds for _ in range(BLOCK_TOKENS)]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(blocks, st.integers(0, 3)), max_size=12), st.integers(1, 5))
def test_prefix_cache_gives_what_belongs_to_the_beginning(prompts, num_blocks):
    cache = PrefixCache(num_blocks * BLOCK_BYTES)
    for whole, more in prompts:
        prompt = [*whole, *([9] * more), 7]
        found = cache.find(prompt)
        states = numbered(prompt)
        for number, block in enumerate(found):
            begin = number * BLOCK_TOKENS
            assert torch.equal(block, states[:, :, :, begin : begin + BLOCK_TOKENS])
        assert len(found) * BLOCK_TOKENS < len(prompt)
        cache.insert(prompt, states)
        assert cache.nbytes <= num_blocks * BLOCK_BYTES
        again = cache.find(prompt)  # what was used last is kept, as far as it fits
        assert len(again) == min(len(whole) // BLOCK_TOKENS, num_blocks)


def test_prefix_cache_forgets_the_least_recently_used_end():
    cache = PrefixCache(3 * BLOCK_BYTES)
    start, left, right = ([kind] * BLOCK_TOKENS for kind in (1, 2, 3))
    for prompt in ([*start, *left, 0], [*start, *right, 0]):
        cache.insert(prompt, numbered(prompt))
    assert len(cache.find([*start, *left, 0])) == 2
    other = [4] * BLOCK_TOKENS
    cache.insert([*other, 0], numbered([*other, 0]))  # takes the place of start-right
    assert len(cache.find([*start, *right, 0])) == 1
    assert len(cache.find([*start, *left, 0])) == 2
    assert len(cache.find([*other, 0])) == 1
    assert cache.hit_rate == cache.num_reused_tokens / cache.num_prompt_tokens


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(STORES)),
    st.lists(st.one_of(st.integers(1, 70), st.just("step"), st.integers(-5, -1)), max_size=25),
)
def test_slots_hold_what_rows_wrote(kind, actions):
    """Against plain lists: insert a row, append to all, remove one."""
    shape = KvShape(layers=2, heads=3, size=4, dtype=torch.float32, device=torch.device("cpu"))
    slots = STORES[kind](shape)
    generator = torch.Generator().manual_seed(0)
    rows = []  # [layers, 2, heads, positions, size] each
    for action in actions:
        if action == "step":
            if not rows:
                continue
            places = slots.next_places()
            new = torch.randn(2, 2, len(rows), 3, 4, generator=generator)
            rows = [torch.cat((row, new[:, :, i, :, None]), dim=3) for i, row in enumerate(rows)]
            for layer in range(2):
                keys, values = new[layer].transpose(1, 2)
                seen = slots.append(layer, keys, values, places)
                for side in range(2):
                    for i, row in enumerate(rows):
                        have, length = seen[side][i], row.shape[3]
                        tolerance = 0.02 if kind == "int8" else 0
                        past = (have[:, :length] - row[layer, side]).abs()
                        assert past.max() <= tolerance
                        assert torch.equal(have[:, length - 1], row[layer, side, :, -1])
                        assert torch.isfinite(have).all()
        elif action > 0:
            row = torch.randn(2, 2, 3, action, 4, generator=generator).clamp_(-3, 3)
            slots.insert(row, action + 30)
            rows.append(row)
        elif rows:
            leaving = -action % len(rows)
            order = slots.remove([leaving])
            rows = [rows[i] for i in order]
        assert slots.lengths == [row.shape[3] for row in rows]
