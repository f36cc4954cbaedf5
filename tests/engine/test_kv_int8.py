"""The int8 cache: how near it is, what it weighs, and that rows stay what they are alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import load_tiny, save_tiny
from transformers import (
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from capibench.engine.decoding import CachedBatch, count_int8_layers, decode
from capibench.engine.engine import GenerationRequest
from capibench.engine.kv_bytes import cache_bytes, count_kv_bytes
from capibench.engine.kv_int8 import Int8Layer, quantize_states
from capibench.engine.kv_quality import evaluate_kv_cache
from capibench.engine.transformers_static import TransformersStatic
from capibench.errors import ConfigError
from capibench.quantization.quality import compare

PROMPTS = ["hello world", "a", "the quick brown fox jumps over it", "xyz 123", "a", "é\n\tü"]
LENGTHS = [5, 20, 1, 9, 20, 13]
TEXTS = ["The quick brown fox jumps over the lazy dog.", "def f(x): return x + 1", "ab", "abc" * 20]
LAYERS, KV_HEADS, HEAD_SIZE = 2, 2, 32  # of the tiny model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("tiny")))


def states(rows, positions, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, KV_HEADS, positions, HEAD_SIZE, generator=generator).to(dtype)


# The layer


@settings(max_examples=30)
@given(
    st.integers(0, 2**31), st.floats(1e-3, 1e3), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_no_value_is_off_by_more_than_half_a_step(seed, scale, dtype):
    exact = (states(2, 3, seed) * scale).to(dtype)
    exact[0, 0, 1] = 0
    q, scales = quantize_states(exact)
    assert (q.dtype, scales.dtype, scales.shape) == (torch.int8, dtype, (2, KV_HEADS, 3, 1))
    error = (q.double() * scales.double() - exact.double()).abs()
    steps = exact.double().abs().amax(-1, keepdim=True) / 127
    # A bf16 scale that was rounded down cannot reach the largest value: 2⁻⁹ of 127 steps more.
    slack = 0.5001 if dtype == torch.float32 else 0.51 + 127 * 2**-9
    assert (error <= slack * steps).all()
    assert (error[0, 0, 1] == 0).all()


def test_the_past_is_rounded_and_the_present_is_not():
    layer = Int8Layer(8)
    first, second = states(2, 5, 1), states(2, 1, 2)
    keys, values = layer.update(first, 2 * first)
    assert torch.equal(keys, first)
    assert torch.equal(values, 2 * first)
    keys, values = layer.update(second, second)
    q, scales = quantize_states(first)
    assert keys.shape == (2, KV_HEADS, 6, HEAD_SIZE)
    assert torch.equal(keys[:, :, :5], q * scales)
    assert not torch.equal(keys[:, :, :5], first)
    assert torch.equal(keys[:, :, 5:], second)
    assert torch.equal(values[:, :, 5:], second)
    assert layer.get_seq_length() == 6


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_rows_know_nothing_of_each_other(rows, positions, data):
    """Bit for bit: whatever stands beside a row and whoever leaves."""
    kept = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, unique=True))
    together, alone = Int8Layer(9), [Int8Layer(9) for _ in kept]
    past, present = states(rows, positions, 3), states(rows, 1, 4)
    together.update(past, past)
    together.batch_select_indices(torch.tensor(kept))
    seen, _ = together.update(present[kept], present[kept])
    for i, (row, layer) in enumerate(zip(kept, alone, strict=True)):
        layer.update(past[[row]], past[[row]])
        own, _ = layer.update(present[[row]], present[[row]])
        assert torch.equal(seen[[i]], own)


# Decoding


def test_a_row_has_the_same_tokens_alone_and_batched(model):
    ids = [model.tokenizer(p)["input_ids"] for p in PROMPTS]
    together = decode(model.module, ids, LENGTHS, now=lambda: 0.0, kv_cache="int8")
    for prompt, length, row in zip(ids, LENGTHS, together, strict=True):
        alone = decode(model.module, [prompt], [length], now=lambda: 0.0, kv_cache="int8")[0]
        assert row.tokens == alone.tokens
        assert len(row.tokens) == length


def test_logits_are_near_the_exact_ones_but_not_the_same(model):
    ids = [model.tokenizer(p)["input_ids"] for p in PROMPTS]
    with torch.inference_mode():
        batches = {kind: CachedBatch(model.module, ids, 4, kind) for kind in ("native", "int8")}
        first = {kind: batch.prefill() for kind, batch in batches.items()}
        assert torch.equal(first["native"], first["int8"])  # nothing past yet
        tokens = first["native"].argmax(-1, keepdim=True)
        for _ in range(4):
            after = {kind: batch.step(tokens) for kind, batch in batches.items()}
            difference = (after["native"] - after["int8"]).square().mean().sqrt()
            assert 0 < difference < 0.05 * after["native"].std()
            tokens = after["native"].argmax(-1, keepdim=True)


def test_rows_that_leave_take_their_memory_along(model):
    batch = CachedBatch(model.module, [[5], [6, 7], [8]], 3, "int8")
    with torch.inference_mode():
        batch.prefill()
        before = cache_bytes(batch.cache)
        batch.keep(torch.tensor([1]))
        assert cache_bytes(batch.cache) * 3 == before
        assert batch.step(torch.tensor([[9]])).shape[0] == 1


# Bytes


def test_bytes_are_those_of_the_storage(model):
    native = count_kv_bytes(model.module, "native")
    assert native.held == native.native == LAYERS * 2 * KV_HEADS * HEAD_SIZE * 4
    assert native.transient == 0
    counted = count_kv_bytes(model.module, "int8")
    assert counted.held == LAYERS * 2 * KV_HEADS * (HEAD_SIZE + 4)
    assert counted.held < native.held / 2
    assert counted.native == native.held
    assert counted.transient == native.held // LAYERS


def test_a_real_batch_weighs_what_was_counted(model):
    counted = count_kv_bytes(model.module, "int8")
    batch = CachedBatch(model.module, [[5, 6, 7], [8]], 4, "int8")
    with torch.inference_mode():
        batch.step(batch.prefill().argmax(-1, keepdim=True))
    assert cache_bytes(batch.cache) == counted.held * 2 * (3 + 4)  # rows × reserved positions


def test_half_of_bf16_with_bf16_scales(tmp_path):
    module = load_tiny(save_tiny(tmp_path), precision="bf16").module
    counted = count_kv_bytes(module, "int8")
    assert counted.native == LAYERS * 2 * KV_HEADS * HEAD_SIZE * 2
    assert counted.held == LAYERS * 2 * KV_HEADS * (HEAD_SIZE + 2)


# Quality


def test_quality_is_close_but_the_option_does_something(model):
    exact, rounded = evaluate_kv_cache(model, TEXTS, max_tokens=400, window=64, num_rows=3)
    figures = compare(exact, rounded)
    assert 0.98 < figures["perplexity_ratio"]["value"] < 1.02
    assert figures["perplexity_ratio"]["value"] != 1
    assert 0 < figures["kl_mean"]["value"] < 0.01
    assert figures["top1_agreement"]["value"] > 0.9
    for name in ("perplexity_ratio", "kl_mean", "top1_agreement"):
        assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]


def test_exact_side_is_the_model_without_a_cache(model):
    """The reference: one forward pass over the whole window, in float64."""
    exact, _ = evaluate_kv_cache(model, TEXTS, max_tokens=400, window=64, num_rows=2)
    reference = []
    targets = []
    module = LlamaForCausalLM(model.module.config).double().eval()
    module.load_state_dict(model.module.state_dict())
    for text in TEXTS:
        ids = model.tokenizer(text)["input_ids"]
        for begin in range(0, len(ids), 64):
            piece = ids[begin : begin + 64]
            if len(piece) < 3:
                continue
            with torch.inference_mode():
                logits = module(torch.tensor([piece])).logits[0].log_softmax(-1)
            scored = range(len(piece) // 2 + 1, len(piece))
            reference += [-logits[i - 1, piece[i]].item() for i in scored]
            targets += [piece[i] for i in scored]
    assert exact.targets.tolist() == targets
    assert np.allclose(exact.nll, reference, atol=1e-4)


def test_neighbours_do_not_change_the_figures(model):
    one = evaluate_kv_cache(model, TEXTS, max_tokens=400, window=32, num_rows=1)
    many = evaluate_kv_cache(model, TEXTS, max_tokens=400, window=32, num_rows=8)
    for alone, together in zip(one, many, strict=True):
        assert alone.targets.tolist() == together.targets.tolist()
        assert alone.windows.tolist() == together.windows.tolist()
        assert np.allclose(alone.nll, together.nll, atol=1e-2)


def test_quality_refuses_what_it_cannot_score(model):
    with pytest.raises(ValueError, match="no window has three tokens"):
        evaluate_kv_cache(model, ["ab"], 100, 64, 4)
    with pytest.raises(ValueError, match="num_rows: got 0; expected at least 1"):
        evaluate_kv_cache(model, TEXTS, 100, 64, 0)
    broken = load_tiny_broken(model)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        evaluate_kv_cache(broken, TEXTS, 100, 64, 4)


def load_tiny_broken(model):
    module = LlamaForCausalLM(model.module.config).eval().requires_grad_(False)
    module.model.norm.weight.fill_(float("nan"))
    return replace(model, module=module)


# The engine


def run(model, use, kv_cache="int8"):
    async def main():
        engine = TransformersStatic(1, kv_cache)
        try:
            await engine.start(model)
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(main())


def test_engine_serves_with_it_and_says_what_it_costs(model):
    batch = [GenerationRequest(p, n) for p, n in zip(PROMPTS, LENGTHS, strict=True)]

    async def use(engine):
        return await engine.generate(batch, worker=0), engine.describe()

    answers, described = run(model, use)
    ids = [model.tokenizer(p)["input_ids"] for p in PROMPTS]
    rows = decode(model.module, ids, LENGTHS, now=lambda: 0.0, kv_cache="int8")
    assert [a.text for a in answers] == [model.tokenizer.decode(row.tokens) for row in rows]
    assert described["kv_cache"].startswith("int8 with a float32 scale per position and head in 2")
    assert described["kv_bytes_per_token"] < described["kv_bytes_per_token_native"] / 2
    assert described["kv_transient_bytes_per_token"] > 0
    _, native = run(model, use, "native")
    assert native["kv_bytes_per_token"] == described["kv_bytes_per_token_native"]
    assert native["kv_transient_bytes_per_token"] == 0


def test_unknown_kind_is_one_clear_error(choice):
    assert choice("engine", "transformers_static").kv_cache == "native"
    assert choice("engine", "transformers_static", kv_cache="int8").kv_cache == "int8"
    with pytest.raises(ConfigError, match=r"engine\.kv_cache: .*int7.*native.*int8"):
        choice("engine", "transformers_static", kv_cache="int7")


SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip


def test_sliding_windows_keep_their_own_kind(model):
    torch.manual_seed(0)
    config = Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    module = Qwen2ForCausalLM(config).eval()
    assert count_int8_layers(config) == (1, 2)
    counted = count_kv_bytes(module, "int8")
    assert counted.native / 2 < counted.held < counted.native
    rows = decode(module, [[5, 6, 7], [8]], [12, 4], now=lambda: 0.0, kv_cache="int8")
    alone = decode(module, [[8]], [4], now=lambda: 0.0, kv_cache="int8")
    assert rows[1].tokens == alone[0].tokens

    windows_only = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)).eval()
    with pytest.raises(ConfigError, match=r"engine\.kv_cache: got 'int8', but every layer"):
        run(replace(model, module=windows_only), lambda _: None)
    with pytest.raises(ConfigError, match=r"engine\.kv_cache: got 'int8', but every layer"):
        evaluate_kv_cache(replace(model, module=windows_only), TEXTS, 100, 64, 4)
