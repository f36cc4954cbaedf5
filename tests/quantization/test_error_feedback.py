"""Error feedback: the textbook's recursion, inputs learned from random tokens, better answers."""

import pytest
import torch
from tiny_llama import byte_tokenizer, load_tiny, save_tiny
from transformers import GPT2Config, GPT2LMHeadModel

from capibench.errors import ConfigError
from capibench.model.pretrained import load_folder
from capibench.quantization import random_tokens
from capibench.quantization.error_feedback import round_with_feedback
from capibench.quantization.layers import choose_linears
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint
from capibench.quantization.random_tokens import RandomTokens
from capibench.quantization.round_to_nearest import RoundToNearest
from capibench.quantization.rounding import fit_grid, round_to_nearest

TOKENS = RandomTokens(num_samples=12, sequence_tokens=40, damp_percent=0.05, seed=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def method(feedback, bits=4):
    return RoundToNearest(bits, 64, True, feedback, ["lm_head"], 8)


def problem(num_out=12, num_in=96, seed=0):
    """Weights, and second moments of inputs that depend on each other."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_in, num_in, generator=g) / num_in**0.5 + torch.eye(num_in)
    inputs = torch.randn(600, num_in, generator=g) @ mixing
    return torch.randn(num_out, num_in, generator=g), inputs.T @ inputs / len(inputs)


def one_by_one(weight, moments, bits, size, symmetric, damp):
    """Optimal brain quantization in a fixed order, as it is defined: the inverse of what is left
    is reduced by one input after each step (Frantar et al., section 3, equations 2 and 3)."""
    left, num_in = weight.double().clone(), weight.shape[1]
    inverse = (moments + damp * moments.diagonal().mean() * torch.eye(num_in)).double().inverse()
    result = torch.empty_like(left)
    for i in range(num_in):
        if i % size == 0:
            scale, zero = fit_grid(left[:, i : i + size].float(), bits, symmetric)
        point = (left[:, i] / scale + zero).round().clamp(0, 2**bits - 1)
        result[:, i] = (point - zero) * scale
        step = (left[:, i] - result[:, i]) / inverse[i, i]
        left[:, i:] -= step[:, None] * inverse[i, i:]
        inverse = inverse - inverse[:, i, None] * inverse[i] / inverse[i, i]
    return result


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size", "num_in"), [(4, 0, 160), (4, 32, 96), (3, 96, 96)])
def test_it_is_the_recursion_of_the_paper(bits, group_size, num_in, symmetric):
    weight, moments = problem(num_in=num_in)
    got = round_with_feedback(weight, moments, bits, group_size, symmetric, 0.05)
    expected = one_by_one(weight, moments, bits, group_size or num_in, symmetric, 0.05)
    torch.testing.assert_close(got.dequantized().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_outputs_change_less_than_with_the_nearest_points(seed):
    weight, moments = problem(seed=seed)

    def change(rounded):
        error = rounded.dequantized() - weight
        return float(((error @ moments) * error).sum())

    nearest = round_to_nearest(weight, 4, 32, True)
    assert change(round_with_feedback(weight, moments, 4, 32, True, 0.05)) < 0.8 * change(nearest)


@pytest.mark.parametrize("moments", [torch.eye(96), torch.zeros(96, 96)])
def test_inputs_that_tell_nothing_of_each_other_take_the_nearest_points(moments):
    weight, _ = problem()
    got = round_with_feedback(weight, moments, 4, 32, False, 0.05)
    expected = round_to_nearest(weight, 4, 32, False)
    assert torch.equal(got.q, expected.q)
    assert torch.equal(got.scales, expected.scales)
    assert torch.equal(got.zeros, expected.zeros)


def test_moments_are_those_of_what_each_layer_takes_in(source, monkeypatch):
    model = load_tiny(source)
    layers, _ = choose_linears(model.module, ["lm_head"])
    read = []
    embedding = model.module.get_input_embeddings()
    watch = embedding.register_forward_pre_hook(lambda _, a: read.append(a[0]))
    found = dict(TOKENS.moments(model, layers))
    watch.remove()
    assert list(found) == list(layers)
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, a, name=name: seen.update({name: a[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model.module(torch.cat(read))
    for hook in hooks:
        hook.remove()
    for name, moments in found.items():
        rows = seen[name].flatten(0, 1).double()
        expected = torch.einsum("ni,nj->ij", rows, rows) / len(rows)
        torch.testing.assert_close(moments.double(), expected, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(random_tokens, "_MOMENTS_BYTES", 4 * 128**2)  # one layer at a time
    for name, moments in TOKENS.moments(model, layers):
        assert torch.equal(moments, found[name])


def test_tokens_are_the_tokenizers_and_the_frequent_ones_come_often(source):
    model = load_tiny(source)  # its embedding has 300 rows, its tokenizer 260 tokens
    seen = []
    hook = model.module.get_input_embeddings().register_forward_pre_hook(
        lambda _, a: seen.append(a[0])
    )
    layers, _ = choose_linears(model.module, ["lm_head"])
    dict(TOKENS.moments(model, layers))
    hook.remove()
    ids = torch.cat(seen)
    assert ids.shape == (12, 40)
    assert 200 < int(ids.max()) < len(model.tokenizer)
    counts = ids.flatten().bincount(minlength=300)
    # 1 / (rank + 2.7): the first 26 ranks have 48 % of 260, the last 130 have 15 %.
    assert counts[:26].sum() > 0.4 * ids.numel()
    assert counts[130:].sum() < 0.22 * ids.numel()


def test_the_checkpoint_holds_these_numbers_and_is_always_the_same(source, tmp_path):
    model = load_tiny(source)
    layers, _ = choose_linears(model.module, ["lm_head"])
    moments = dict(TOKENS.moments(model, layers))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        method(TOKENS).quantize(model, [], tmp_path / name)
        for layer, stored in read_quantized_checkpoint(tmp_path / name).layers:
            weight = layers[layer].weight
            expected = round_with_feedback(weight, moments[layer], 4, 64, True, 0.05)
            assert torch.equal(stored.q, expected.q)
            assert not torch.equal(stored.q, round_to_nearest(weight, 4, 64, True).q)
    _, kernel = method(TOKENS).load(load_tiny(source), tmp_path / "first")
    assert "14 layers of 4 bits" in kernel


def test_layers_that_hold_their_weights_transposed(tmp_path):
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=260, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    model = load_folder(tmp_path / "model", "fp32", "model.path")
    (tmp_path / "made").mkdir()
    method(TOKENS).quantize(model, [], tmp_path / "made")
    shapes = {n: tuple(w.q.shape) for n, w in read_quantized_checkpoint(tmp_path / "made").layers}
    assert shapes["transformer.h.0.mlp.c_fc"] == (256, 64)


def test_sequences_longer_than_the_model_takes_are_cut_into_more(tmp_path, caplog):
    model = load_tiny(save_tiny(tmp_path / "model", num_positions=40))
    tokens = RandomTokens(num_samples=5, sequence_tokens=64, damp_percent=0.05, seed=0)
    method(tokens).quantize(model, [], tmp_path)
    assert "8 sequences of 40, as the model has 40 positions" in caplog.text
    as_many = RandomTokens(num_samples=8, sequence_tokens=40, damp_percent=0.05, seed=0)
    layers, _ = choose_linears(model.module, ["lm_head"])
    for (_, one), (_, other) in zip(
        tokens.moments(model, layers), as_many.moments(model, layers), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_samples", 0), ("sequence_tokens", 0), ("seed", -1), ("damp_percent", 0.0)],
)
def test_a_setting_out_of_range_is_named(name, value):
    known = {"num_samples": 1, "sequence_tokens": 1, "damp_percent": 0.05, "seed": 0}
    with pytest.raises(ValueError, match=f"^{name}: got {value}"):
        RandomTokens(**{**known, name: value})


def test_moments_that_cannot_be_inverted_are_refused():
    weight, _ = problem(num_in=64)
    inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=r"quantization\.feedback\.damp_percent.*got 1e-12"):
        round_with_feedback(weight, inputs.T @ inputs, 4, 64, True, 1e-12)


def test_a_module_to_skip_that_is_none_is_refused(source):
    module = load_tiny(source).module
    with pytest.raises(ConfigError, match=r"quantization\.skip_modules.*'lm_heed'.*down_proj"):
        choose_linears(module, ["lm_heed"])
