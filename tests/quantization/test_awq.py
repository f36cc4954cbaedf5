"""AWQ: scales folded into norms, searches that find the least error, a checkpoint others read."""

import pytest
import torch
from test_gptq import (
    PROMPT,
    TEXTS,
    assert_same_numbers,
    dequantized,
    follows,
    greedy,
    linears,
    logits,
    read_elsewhere,
)
from tiny_llama import load_tiny, save_tiny
from torch import nn

from capibench.config import build
from capibench.errors import ConfigError
from capibench.quantization.awq import Awq
from capibench.quantization.awq_search import best_clip, best_scale
from capibench.quantization.calibration_tokens import choose_tokens
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint
from capibench.quantization.rounding import round_to_nearest

GROUP_SIZE = 64
NODE = {
    "_target_": "capibench.quantization.awq.Awq",
    "bits": 4,
    "group_size": GROUP_SIZE,
    "symmetric": False,
    "skip_modules": ["lm_head"],
    "num_samples": 16,
    "sequence_tokens": 64,
    "batch_size": 8,
    "seed": 0,
    "packed_max_rows": 16,
}


def awq(**changes) -> Awq:
    return build(NODE | changes, "quantization")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("awq")
    awq().quantize(load_tiny(source), TEXTS, folder)
    return folder


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
    return read_elsewhere(folder, "awq", tmp_path_factory.mktemp("elsewhere"))


def test_every_layer_of_the_decoder_is_stored_as_integers(folder, source):
    checkpoint = read_quantized_checkpoint(folder)
    layers = linears(load_tiny(source).module)
    assert checkpoint.method == "awq"
    assert checkpoint.bits == dict.fromkeys(layers, 4)
    for name, weight in checkpoint.layers:
        assert weight.q.shape == layers[name].weight.shape
        assert weight.group_size == GROUP_SIZE
        assert int(weight.q.max()) <= 15
        assert len(weight.zeros.unique()) > 1


def test_scales_moved_into_the_norms_cancel_out(folder, source):
    model = load_tiny(source).module
    checkpoint = read_quantized_checkpoint(folder)
    others, layers = dict(checkpoint.others), dict(checkpoint.layers)
    moved = 0
    for number, block in enumerate(model.model.layers):
        before = block.input_layernorm.weight
        after = others[f"model.layers.{number}.input_layernorm.weight"].float()
        moved += int(not torch.allclose(before, after, rtol=0.01))
        weight = layers[f"model.layers.{number}.self_attn.q_proj"].dequantized() * after
        exact = block.self_attn.q_proj.weight * before
        assert float((weight - exact).norm() / exact.norm()) < 0.15
    assert moved


def test_loaded_it_computes_with_the_stored_numbers_norms_included(folder, source):
    model, kernel = awq().load(load_tiny(source), folder)
    expected = logits(dequantized(load_tiny(source), folder))
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    assert "14 layers of 4 bits" in kernel


def test_it_changes_the_output_less_than_rounding_on_the_texts_it_read(folder, source):
    rounded = load_tiny(source)
    for layer in linears(rounded.module).values():
        numbers = round_to_nearest(layer.weight, 4, GROUP_SIZE, symmetric=False)
        layer.weight.copy_(numbers.dequantized())
    ids = choose_tokens(rounded, TEXTS, 16, 64, 0).ids
    with torch.no_grad():
        exact = load_tiny(source).module(ids).logits
        ours = dequantized(load_tiny(source), folder).module(ids).logits
        theirs = rounded.module(ids).logits
    assert float((ours - exact).norm()) < 0.95 * float((theirs - exact).norm())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, r"^quantization\.bits: got 3; expected 4"),
        ({"group_size": 16}, r"^quantization\.group_size: got"),
        ({"batch_size": 0}, r"^quantization\.batch_size: got 0"),
    ],
)
def test_a_setting_out_of_range_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        awq(**changes)


def test_a_layer_that_no_group_divides_is_named(source, tmp_path):
    with pytest.raises(ConfigError, match=r"group_size: got 128.*in_features=192.*down_proj"):
        awq(group_size=128).quantize(load_tiny(source), TEXTS, tmp_path)
    assert not list(tmp_path.iterdir())


def to_grid(rows):
    """Each group of 32 to 16 points and back, as AWQ rounds without a zero point."""
    return round_to_nearest(rows, 4, min(32, rows.shape[1]), symmetric=True).dequantized()


def test_the_best_range_is_the_one_with_the_least_error_of_the_output():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 64, generator=g)
    weight[:, 5] *= 6  # outliers, worth clipping
    inputs = torch.randn(2, 700, 64, generator=g) * torch.rand(64, generator=g)
    found = best_clip(weight, inputs, 32, to_grid)
    assert found.shape == (8, 2, 1)
    rows = inputs.reshape(-1, 64)[::2].double()
    for out in range(8):
        for group in range(2):
            part = slice(group * 32, group * 32 + 32)
            w = weight[out : out + 1, part]
            limits = [w.abs().max() * (1 - step / 20) for step in range(10)]
            errors = [
                float((rows[:, part] @ (to_grid(w.clamp(-m, m)) - w).double().T).pow(2).mean())
                for m in limits
            ]
            chosen = min(range(10), key=lambda i: abs(float(limits[i] - found[out, group])))
            assert errors[chosen] == pytest.approx(min(errors), rel=1e-4)
    assert bool((found[..., 0] < weight.reshape(8, 2, 32).abs().amax(-1)).any())


def test_the_best_scales_are_those_with_the_least_error_and_leave_the_weights_alone():
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 16, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(16, 64, generator=g))
    exact = layer.weight.clone()
    inputs = torch.randn(300, 64, generator=g)
    inputs[:, :4] *= 30  # channels that matter
    input_means = inputs.abs().mean(0)
    weight_means = exact.abs().mean(0) / exact.abs().max()
    expected = inputs @ exact.T
    scales, error = best_scale(
        [layer.weight], weight_means, input_means, to_grid,
        lambda: expected.split(100), lambda: (layer(part) for part in inputs.split(100)),
    )  # fmt: skip
    assert torch.equal(layer.weight, exact)
    again = to_grid(exact * scales) / scales
    assert error == pytest.approx(float((inputs @ again.T - expected).pow(2).mean()), rel=1e-4)
    assert error < 0.5 * float((inputs @ to_grid(exact).T - expected).pow(2).mean())
    assert float(scales[:4].mean()) > 2 * float(scales[4:].mean())


@pytest.mark.slow
def test_plain_transformers_loads_it_and_writes_the_same_tokens(folder, elsewhere, source):
    (fast, fast_tokens), (plain, tokens) = elsewhere[0]
    assert (fast, plain) == (["TorchAtenAwqLinear"], ["AwqTorchLinear"])
    # No AWQ kernel of gptqmodel multiplies in float32: this one takes float16, that one bfloat16.
    # What is stored, multiplied in float16 here too, gives the same tokens; served in float32 it
    # prefers them as well, up to what float16 loses.
    served, _ = awq().load(load_tiny(source), folder)
    assert tokens == greedy(in_half_precision(load_tiny(source), folder), PROMPT)
    assert follows(served, len(PROMPT), tokens, margin=0.02)
    assert follows(served, len(PROMPT), fast_tokens, margin=0.1)


class HalfProduct(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return (x.half() @ self.weight.T).float()


def in_half_precision(model, folder):
    checkpoint = read_quantized_checkpoint(folder)
    model = dequantized(model, folder)  # for what is not quantized
    for name, weight in checkpoint.layers:
        group = weight.group_of_input
        steps = (weight.q.int() - weight.zeros.int()[:, group]).half()
        model.module.set_submodule(name, HalfProduct(steps * weight.scales.half()[:, group]))
    return model


@pytest.mark.slow
def test_gptqmodel_reads_the_same_numbers(folder, elsewhere):
    assert_same_numbers(folder, elsewhere[1])
