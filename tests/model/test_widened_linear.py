"""bf16 weights where bf16 has no hardware: as exact as PyTorch or more so, and the same model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import load_tiny, save_tiny
from torch import nn
from torch.nn import functional

from capibench.engine.decoding import decode
from capibench.model import widened_linear
from capibench.model.widened_linear import WidenedLinear, linear_kernels
from capibench.quantization.bytes import resident_bytes
from capibench.quantization.float_weights import FloatWeights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def load_where(monkeypatch, native, folder, precision="bf16"):
    """The tiny model on a CPU that has bf16 (`native` is "bf16") or has not ("fp32")."""
    monkeypatch.setattr(widened_linear, "native_precision", lambda: native)
    return load_tiny(folder, precision)


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def random_layer(num_in, num_out, bias, seed):
    g = torch.Generator().manual_seed(seed)
    layer = WidenedLinear(num_in, num_out, bias, dtype=torch.bfloat16).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_(generator=g)
    return layer


def check_product(layer, x):
    """Within half a last place of the float64 product, and no worse than PyTorch."""
    got = layer(x)
    assert got.dtype == torch.bfloat16
    assert got.shape == (*x.shape[:-1], layer.out_features)
    weight = layer.weight.double()
    bias = torch.zeros(()) if layer.bias is None else layer.bias
    exact = x.double() @ weight.T + bias.double()
    size = x.double().abs() @ weight.abs().T + bias.double().abs()  # what fp32 sums are rounded by
    error = (got.double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 2**-20 * size).all()
    # Each is rounded to bf16 at the end, sums of another order now and then to the other side.
    torchs = (functional.linear(x, layer.weight, layer.bias).double() - exact).norm()
    assert error.norm() <= 1.001 * torchs + 2**-20 * size.norm()


@settings(max_examples=40)
@given(
    num_in=st.integers(1, 90),
    num_out=st.integers(1, 70),
    rows=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_are_at_least_as_exact_as_pytorchs(num_in, num_out, rows, bias, seed):
    x = torch.randn(*rows, num_in, generator=torch.Generator().manual_seed(seed + 1)).bfloat16()
    check_product(random_layer(num_in, num_out, bias, seed), x)


@pytest.mark.parametrize("num_out", [512, 1100])  # one tile of 2 MB; two and a part of one
def test_every_tile_is_multiplied(num_out):
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    check_product(random_layer(1024, num_out, True, 1), x)


def test_no_rows_give_no_rows():
    assert random_layer(8, 6, True, 0)(torch.empty(0, 8, dtype=torch.bfloat16)).shape == (0, 6)


def test_one_row_is_pytorchs_own_product():
    layer = random_layer(64, 48, True, 0)
    x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


def test_in_another_type_it_is_an_ordinary_linear():
    layer = random_layer(64, 48, True, 0).float()
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("native", "precision", "widened"),
    [("fp32", "bf16", True), ("fp32", "fp32", False), ("bf16", "bf16", False)],
)
def test_only_bf16_without_hardware_is_widened(folder, monkeypatch, native, precision, widened):
    model = load_where(monkeypatch, native, folder, precision)
    assert {isinstance(layer, WidenedLinear) for layer in linears(model.module)} == {widened}
    assert ("float32" in linear_kernels(model.module, model.dtype)) == (
        widened or precision == "fp32"
    )


def test_the_model_stays_what_it_was(folder, monkeypatch, tmp_path):
    """Identity, names, bytes, the tie of head and embedding, and what is saved."""
    plain = load_where(monkeypatch, "bf16", folder)
    model = load_where(monkeypatch, "fp32", folder)
    module = model.module
    assert model.fingerprint == plain.fingerprint
    assert resident_bytes(module) == resident_bytes(plain.module)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load_tiny(tmp_path, "bf16")
    assert again.fingerprint == model.fingerprint
    for name, tensor in plain.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_logits_are_closer_to_the_exact_ones(folder, monkeypatch):
    ids = torch.arange(48).view(4, 12) * 37 % 300
    with torch.no_grad():
        plain = load_where(monkeypatch, "bf16", folder).module
        torchs = plain(ids).logits.double()
        got = load_where(monkeypatch, "fp32", folder).module(ids).logits.double()
        exact = plain.double()(ids).logits
    # Roundings between the layers are the same ones; so are the errors, give or take.
    assert (got - exact).norm() <= 1.05 * (torchs - exact).norm()


def test_a_batch_is_decoded_and_tokens_are_the_most_probable(folder, monkeypatch):
    module = load_where(monkeypatch, "fp32", folder).module
    prompts = [[5 + i, 40 + 2 * i, 7] for i in range(6)]
    rows = decode(module, prompts, [4] * 6, now=lambda: 0.0)
    ids = torch.tensor([[*p, *row.tokens] for p, row in zip(prompts, rows, strict=True)])
    with torch.no_grad():
        logits = module(ids).logits.float()[:, 2:-1]
    best = logits.max(-1).values
    chosen = logits.gather(-1, ids[:, 3:, None])[..., 0]
    # Computed again without a cache, in products of other sizes: up to a few roundings of bf16.
    assert (best - chosen <= 0.05 * logits.std()).all()


def test_a_model_converted_to_bf16_is_widened_too_and_back_again_not(folder, monkeypatch, tmp_path):
    for dtype, kernel in (("bfloat16", "float32"), ("float32", "aten::linear (float32)")):
        method = FloatWeights(dtype)
        target = tmp_path / dtype
        target.mkdir()
        loaded = load_where(monkeypatch, "fp32", folder, "fp32" if dtype == "bfloat16" else "bf16")
        method.quantize(loaded, [], target)
        model, said = method.load(loaded, target)
        widened = dtype == "bfloat16"
        assert (kernel in said) if widened else (kernel == said)
        head = model.module.lm_head
        assert head.weight.dtype == getattr(torch, dtype)
        x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).to(head.weight.dtype)
        assert torch.equal(head(x), WidenedLinear.forward(head, x))
