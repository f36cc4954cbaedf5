"""The packed layer multiplies by exactly the numbers that its integers stand for, on every path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capibench.quantization import packed_kernels
from capibench.quantization.packed_linear import PackedLinear
from capibench.quantization.quantized_weight import QuantizedWeight

FEW, MANY = 32, 0  # packed_max_rows that send any test's rows to one path or to the other


def random_weight(bits, num_out, num_groups, group_size, act_order, seed):
    """Any integers, scales, zero points and, where wanted, groups in random order."""
    g = torch.Generator().manual_seed(seed)
    num_in = num_groups * group_size
    groups = None
    if act_order:
        groups = (torch.arange(num_in) // group_size)[torch.randperm(num_in, generator=g)]
    return QuantizedWeight(
        q=torch.randint(0, 2**bits, (num_out, num_in), generator=g, dtype=torch.uint8),
        scales=(torch.rand(num_out, num_groups, generator=g) + 0.1).half(),
        zeros=torch.randint(0, 2**bits, (num_out, num_groups), generator=g, dtype=torch.uint8),
        bits=bits,
        group_size=group_size,
        groups=groups,
    )


WEIGHTS = st.builds(
    random_weight,
    bits=st.sampled_from([2, 3, 4, 8]),
    num_out=st.integers(1, 70),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([16, 32, 48]),
    act_order=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(max_examples=60)
@given(
    weight=WEIGHTS,
    rows=st.integers(1, 31),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    packed_max_rows=st.sampled_from([FEW, MANY]),
    compiled=st.booleans(),
)
def test_product_equals_the_dequantized_one(weight, rows, bias, dtype, packed_max_rows, compiled):
    num_out, num_in = weight.q.shape
    g = torch.Generator().manual_seed(rows)
    b = torch.randn(num_out, generator=g).to(dtype) if bias else None
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(packed_kernels, "problem", lambda: "switched off")
        layer = PackedLinear(weight, b, dtype, packed_max_rows)
    x = torch.randn(2, rows, num_in, generator=g).to(dtype)
    got = layer(x)
    assert got.shape == (2, rows, num_out)
    assert got.dtype == dtype
    exact = weight.dequantized().double()
    product = x.double() @ exact.T + (0 if b is None else b.double())
    # Zero points are subtracted after summing: rounding is relative to the unshifted terms too.
    size = x.double().abs() @ (exact.abs() + weight.scales.double().max() * 2**weight.bits).T + 1
    unit = 2**-6 if dtype == torch.bfloat16 else 2**-20
    assert ((got.double() - product).abs() <= unit * size).all()


@settings(max_examples=40)
@given(WEIGHTS)
def test_repacking_keeps_every_integer(weight):
    layer = PackedLinear(weight, None, torch.float32, FEW)
    assert torch.equal(layer.dequantized_weight(), weight.dequantized())
    # The compiled kernel too: multiplied by the identity, the weights come back as they are.
    num_in = weight.q.shape[1]
    for packed_max_rows in (num_in, MANY):
        layer.packed_max_rows = packed_max_rows
        torch.testing.assert_close(
            layer(torch.eye(num_in)).T, weight.dequantized(), rtol=1e-6, atol=1e-6 * 2**weight.bits
        )


@settings(max_examples=20)
@given(WEIGHTS, st.integers(2, 20))
def test_a_row_is_the_same_in_any_company(weight, rows):
    layer = PackedLinear(weight, None, torch.float32, FEW)
    x = torch.randn(rows, weight.q.shape[1], generator=torch.Generator().manual_seed(rows))
    together = layer(x)
    rounding = 1e-5 * float(together.abs().max())  # sums near zero keep that of their terms
    for i in range(rows):
        alone = layer(x[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=1e-4 + rounding)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_nothing(threads):
    weight = random_weight(4, 200, 4, 32, False, 0)
    layer = PackedLinear(weight, None, torch.float32, FEW)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer(x)
        torch.set_num_threads(threads)
        assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(before)


def test_wide_layers_are_unpacked_in_several_tiles():
    weight = random_weight(4, 3000, 8, 128, False, 1)  # 12 MB unpacked
    layer = PackedLinear(weight, None, torch.float32, MANY)
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ weight.dequantized().T, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("bits", "held"), [(2, 2), (3, 4), (4, 4), (8, 8)])
def test_bytes_in_memory(bits, held):
    weight = random_weight(bits, 64, 4, 128, False, 0)
    layer = PackedLinear(weight, None, torch.float32, FEW)
    total = sum(buffer.nbytes for buffer in layer.buffers())
    assert total == 64 * 512 * held // 8 + 64 * 4 * (4 + 1)  # fp32 scale, one-byte zero point


def test_layer_is_a_module_without_parameters():
    layer = PackedLinear(random_weight(4, 16, 1, 32, False, 0), None, torch.float32, FEW)
    assert isinstance(layer, nn.Module)
    assert list(layer.parameters()) == []
    assert "bits=4, group_size=32" in repr(layer)


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    packed_kernels._load.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    try:
        assert "no C++ compiler found" in packed_kernels.problem()
    finally:
        packed_kernels._load.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: no such option' >&2\nexit 1\n")
    compiler.chmod(0o700)
    packed_kernels._load.cache_clear()
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("CAPIBENCH_HOME", str(tmp_path / "home"))
    try:
        assert "error: no such option" in packed_kernels.problem()
        assert list((tmp_path / "home" / "kernels").iterdir()) == []
    finally:
        packed_kernels._load.cache_clear()
