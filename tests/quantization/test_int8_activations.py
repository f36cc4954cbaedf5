"""int8 products: exact sums on this machine, rows that do not know their neighbours, true bytes."""

import ctypes
import gc
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.errors import ConfigError
from capibench.quantization.int8_activations import (
    ActivationRange,
    CudaProduct,
    DynamicInt8Linear,
    FbgemmProduct,
    OnednnProduct,
    StaticInt8Linear,
    choose_kernel,
    exact_bits,
)

CPU = torch.device("cpu")
ENGINES = torch.backends.quantized.supported_engines
KERNELS = [name for name in ("fbgemm", "onednn") if name in ENGINES]
PRODUCTS = {"fbgemm": FbgemmProduct, "onednn": OnednnProduct, "int_mm": CudaProduct}
STORED = ActivationRange(scale=0.02, zero_point=-17)


def integers(num_out, num_in, seed):
    """int8 weights with some extreme channels, and their scales."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randint(-128, 128, (num_out, num_in), generator=g, dtype=torch.int8)
    q[::3] = 127
    q[1::4] = -127
    return q, torch.rand(num_out, generator=g) + 0.1


def activations(rows, num_in, seed, dtype=torch.float32):
    """Rows whose sizes differ by orders of magnitude, with an outlier each."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, num_in, generator=g)
    x *= 10 ** (4 * torch.rand(rows, 1, generator=g) - 2)
    x[:, 0] *= 5
    return x.to(dtype)


def layer(kind, kernel, q, scales, bias=None):
    chosen = choose_kernel(kernel, CPU)
    product = chosen.pack(q, scales)
    if kind == "dynamic":
        return DynamicInt8Linear(product, bias, chosen.bits)
    return StaticInt8Linear(product, bias, chosen.bits, STORED)


def expected(kind, bits, x, q, scales):
    """float64 result, and by how much it may differ where a number lies between two steps."""
    exact = x.double()
    if kind == "dynamic":
        half = 2 ** (bits - 1) - 1
        steps = exact.abs().amax(1, keepdim=True) / half
        wanted = (exact / steps).nan_to_num()
        u = wanted.round()
    else:
        scale, zero_point = STORED.on_grid(bits)
        steps = torch.full((len(x), 1), scale, dtype=torch.float64)
        wanted = exact / scale + zero_point
        u = wanted.round().clamp(0, 2**bits - 1) - zero_point
    ties = ((wanted - wanted.floor() - 0.5).abs() < 1e-3).double()
    weight = q.double() * scales.double()[:, None]
    slack = steps * (ties @ weight.abs().T)
    return steps * (u @ weight.T), slack + 1e-5 * steps * (u.abs() @ weight.abs().T) + 1e-30


@pytest.mark.parametrize("kernel", [*KERNELS, "int_mm"])
@settings(max_examples=30)
@given(
    rows=st.integers(1, 40),
    num_in=st.sampled_from([16, 48, 128, 528]),
    num_out=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_sums_are_exact_up_to_the_largest_numbers(kernel, rows, num_in, num_out, seed):
    bits = exact_bits(kernel, CPU)
    q, _ = integers(num_out, num_in, seed)
    top, zero_point = 2**bits - 1, 2 ** (bits - 1)
    u = torch.randint(0, top + 1, (rows, num_in), generator=torch.Generator().manual_seed(seed))
    u[0] = top
    y = PRODUCTS[kernel](q, torch.ones(num_out))((u - zero_point).float(), 1.0, zero_point)
    assert torch.equal(y.long(), (u - zero_point) @ q.long().T)


@pytest.mark.parametrize("kernel", KERNELS)
def test_seven_bits_only_where_eight_are_wrong(kernel):
    q = torch.full((8, 64), 127, dtype=torch.int8)
    x = torch.full((1, 64), 127.0)
    y = PRODUCTS[kernel](q, torch.ones(8))(x, 1.0, 128)
    right = bool((y == 64 * 127 * 127).all())
    assert exact_bits(kernel, CPU) == (8 if right else 7)
    assert ("reduce_range" in str(choose_kernel(kernel, CPU))) == (not right)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@settings(max_examples=25)
@given(
    rows=st.integers(1, 30),
    num_in=st.sampled_from([16, 48, 512, 528]),
    num_out=st.integers(1, 40),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_layer_computes_what_its_integers_say(
    kernel, kind, rows, num_in, num_out, biased, dtype, seed
):
    q, scales = integers(num_out, num_in, seed)
    x = activations(2 * rows, num_in, seed, dtype)
    bias = torch.linspace(-1, 1, num_out) if biased else None
    got = layer(kind, kernel, q, scales, bias)(x.view(2, rows, num_in))
    assert got.shape == (2, rows, num_out)
    assert got.dtype == dtype
    wanted, slack = expected(kind, exact_bits(kernel, CPU), x, q, scales)
    wanted = wanted if bias is None else wanted + bias.double()
    unit = 2**-8 if dtype == torch.bfloat16 else 2**-20
    slack = slack + unit * (wanted.abs() + slack + (0 if bias is None else 1))
    assert ((got.reshape(2 * rows, num_out).double() - wanted).abs() <= slack).all()


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), num_in=st.sampled_from([16, 256, 528]))
def test_a_token_is_within_half_a_step_of_its_own(kernel, seed, num_in):
    q, scales = integers(12, num_in, seed)
    x = activations(9, num_in, seed)
    got = layer("dynamic", kernel, q, scales)(x).double()
    weight = q.double() * scales.double()[:, None]
    half_step = x.double().abs().amax(1, keepdim=True) / (2 ** exact_bits(kernel, CPU) - 2)
    assert ((got - x.double() @ weight.T).abs() <= 1.001 * half_step * weight.abs().sum(1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("num_in", [48, 512, 520])
def test_a_row_alone_and_in_a_batch_are_identical(kind, kernel, dtype, num_in):
    q, scales = integers(72, num_in, 3)
    x = activations(130, num_in, 4, dtype)
    multiply = layer(kind, kernel, q, scales)
    together = multiply(x)
    for row in (0, 1, 63, 129):
        assert torch.equal(multiply(x[row : row + 1])[0], together[row])
    assert torch.equal(multiply(x[40:57]), together[40:57])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_rows_of_zeros_give_the_bias(kind, kernel):
    q, scales = integers(5, 32, 0)
    bias = torch.arange(5.0)
    y = layer(kind, kernel, q, scales, bias)(torch.zeros(3, 32))
    assert torch.equal(y, bias.expand(3, 5))
    assert layer(kind, kernel, q, scales, bias)(torch.zeros(0, 32)).shape == (0, 5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_lies_outside_a_static_range_is_clipped(kernel):
    q, scales = integers(6, 16, 1)
    multiply = layer("static", kernel, q, scales)
    low, high = STORED.scale * (-128 - STORED.zero_point), STORED.scale * (127 - STORED.zero_point)
    assert torch.equal(multiply(torch.full((1, 16), 1e6)), multiply(torch.full((1, 16), high)))
    assert torch.equal(multiply(torch.full((1, 16), -1e6)), multiply(torch.full((1, 16), low)))


@given(st.floats(1e-6, 1e3), st.integers(-128, 127))
def test_fewer_bits_span_the_same_range(scale, zero_point):
    stored = ActivationRange(scale, zero_point)
    assert stored.on_grid(8) == (scale, zero_point + 128)
    narrow, middle = stored.on_grid(7)
    assert 0 <= middle <= 127
    assert narrow * 127 == pytest.approx(scale * 255)
    assert -middle * narrow == pytest.approx(scale * (-128 - zero_point), abs=narrow)


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (0.0, 0, "scale: got 0.0; expected a positive number"),
        (math.nan, 0, "scale: got nan"),
        (math.inf, 0, "scale: got inf"),
        (1.0, 128, "zero_point: got 128; expected -128 to 127"),
    ],
)
def test_ranges_that_are_none(scale, zero_point, message):
    with pytest.raises(ValueError, match=message):
        ActivationRange(scale, zero_point)


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_come_back_as_they_were(kernel):
    q, scales = integers(33, 100, 7)
    got = layer("dynamic", kernel, q, scales).dequantized_weight()
    assert got.dtype == torch.float32
    assert torch.equal(got, q.float() * scales[:, None])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("num_out", "num_in"), [(1024, 256), (256, 1024), (512, 512), (300, 700)])
def test_bytes_are_those_that_the_library_allocates(kernel, num_out, num_in):
    try:
        info = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        pytest.skip("no glibc that tells what is allocated")
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    info.restype = type(
        "Info",
        (ctypes.Structure,),
        {"_fields_": [(name, ctypes.c_size_t) for name in fields.split()]},
    )
    q, scales = integers(num_out, num_in, 0)
    chosen = choose_kernel(kernel, CPU)
    chosen.pack(q, scales)
    gc.collect()  # what earlier tests left is not given back meanwhile
    gc.disable()
    try:
        before = info()
        held = [chosen.pack(q, scales) for _ in range(10)]
        after = info()
    finally:
        gc.enable()
    allocated = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd
    assert sum(product.packed_bytes for product in held) == pytest.approx(allocated, rel=0.05)


@pytest.mark.parametrize("kernel", KERNELS)
def test_packing_leaves_the_global_engine_alone(kernel):
    before = torch.backends.quantized.engine
    choose_kernel(kernel, CPU).pack(*integers(8, 16, 0))
    assert torch.backends.quantized.engine == before


def test_kernels_that_a_machine_has_not():
    assert choose_kernel("auto", CPU).name in KERNELS
    with pytest.raises(ConfigError, match=r"quantization\.kernel: got 'qnnqack'; this PyTorch has"):
        choose_kernel("qnnqack", CPU)
    with pytest.raises(ConfigError, match=r"got 'fbgemm' on a GPU; expected auto"):
        choose_kernel("fbgemm", torch.device("cuda"))
