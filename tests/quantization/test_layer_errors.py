"""Errors of single layers, against what was done to them."""

from itertools import pairwise

import pytest
import torch
from tiny_llama import load_tiny, save_tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from capibench.quantization.layer_errors import layer_errors
from capibench.quantization.rounding import round_to_nearest

DOWN = "model.layers.1.mlp.down_proj"


class Stored(nn.Module):
    """A quantized layer that tells its weights."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def dequantized_weight(self):
        return self.weight.float()

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class Opaque(nn.Module):
    """A quantized layer that does not: its output is off by a constant factor."""

    def __init__(self, linear, factor):
        super().__init__()
        self.linear, self.factor = linear.requires_grad_(False), factor

    def forward(self, x):
        return self.factor * self.linear(x)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def reference(folder):
    return load_tiny(folder).module


@pytest.fixture
def quantized(folder):
    return load_tiny(folder).module


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 260, shape, generator=generator) for shape in ((2, 10), (1, 7))]


def by_name(errors):
    return {error.name: error for error in errors}


def test_only_what_was_changed_has_an_error(reference, quantized, batches):
    weight = reference.get_submodule(DOWN).weight
    quantized.set_submodule(DOWN, Stored(1.25 * weight))
    errors = layer_errors(reference, quantized, batches)
    names = [n for n, m in reference.named_modules() if isinstance(m, nn.Linear)]
    assert [error.name for error in errors] == names
    for error in errors:
        changed = 0.25 if error.name == DOWN else 0.0
        assert error.weight_relative_error == pytest.approx(changed)
        assert error.output_relative_error == pytest.approx(changed, rel=1e-5)
    assert by_name(errors)[DOWN].num_outputs == (2 * 10 + 7) * 128


def test_equals_a_float64_reference_on_the_references_own_inputs(reference, quantized, batches):
    generator = torch.Generator().manual_seed(1)
    for name, layer in reference.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            noise = 0.05 * torch.randn(layer.weight.shape, generator=generator)
            quantized.set_submodule(name, Stored(layer.weight + noise))
    inputs = []
    layer = reference.get_submodule(DOWN)
    with torch.no_grad(), layer.register_forward_hook(lambda _, args, __: inputs.append(args[0])):
        for batch in batches:
            reference(input_ids=batch)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in inputs]).double()
    w, q = layer.weight.double(), quantized.get_submodule(DOWN).weight.double()
    error = by_name(layer_errors(reference, quantized, batches))[DOWN]
    assert error.weight_relative_error == pytest.approx(float((q - w).norm() / w.norm()))
    expected = float((x @ (q - w).T).norm() / (x @ w.T).norm())
    assert error.output_relative_error == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_does_not_tell_its_weights(reference, quantized, batches):
    quantized.set_submodule(DOWN, Opaque(quantized.get_submodule(DOWN), 1.5))
    error = by_name(layer_errors(reference, quantized, batches))[DOWN]
    assert error.weight_relative_error is None
    assert error.output_relative_error == pytest.approx(0.5)


def test_more_bits_are_less_wrong(reference, quantized, batches):
    weight = reference.get_submodule(DOWN).weight
    found = []
    for bits in (2, 3, 4, 8):
        rounded = round_to_nearest(weight, bits, group_size=32, symmetric=False).dequantized()
        quantized.set_submodule(DOWN, Stored(rounded))
        error = by_name(layer_errors(reference, quantized, batches))[DOWN]
        found.append((error.weight_relative_error, error.output_relative_error))
    assert found == sorted(found, reverse=True)
    assert all(a[1] > b[1] for a, b in pairwise(found))


def test_weights_in_another_precision(reference, folder, batches):
    errors = layer_errors(reference, load_tiny(folder, "bf16").module, batches)
    for error in errors:
        assert 1e-4 < error.weight_relative_error < 4e-3  # half of bf16's last place: 2^-9
        assert 1e-4 < error.output_relative_error < 1e-2


def test_gpt2_holds_its_weights_transposed(batches):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    reference, quantized = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    quantized.load_state_dict(reference.state_dict())
    name = "transformer.h.0.attn.c_attn"  # 32 inputs, 96 outputs
    layer = reference.get_submodule(name)
    quantized.set_submodule(name, Stored(1.5 * layer.weight.detach().T, layer.bias.detach()))
    errors = by_name(layer_errors(reference, quantized, batches))
    assert errors[name].weight_relative_error == pytest.approx(0.5)
    assert errors[name].output_relative_error == pytest.approx(0.5, rel=1e-4)
    assert errors["transformer.h.0.mlp.c_fc"].output_relative_error == 0


def test_no_batches_no_output_error_and_no_trace_left(reference, quantized, batches):
    for error in layer_errors(reference, quantized, []):
        assert (error.output_relative_error, error.num_outputs) == (None, 0)
        assert error.weight_relative_error == 0
    quantized.set_submodule(DOWN, nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        layer_errors(reference, quantized, batches)
    assert not any(m._forward_hooks for m in reference.modules())


def test_models_that_do_not_belong_together(reference, quantized, batches):
    del quantized.model.layers[1]
    with pytest.raises(ValueError, match=r"quantized: has no layer model\.layers\.1\.self_attn"):
        layer_errors(reference, quantized, batches)
    with pytest.raises(ValueError, match="reference: has no linear layer"):
        layer_errors(nn.Embedding(3, 3), quantized, batches)
