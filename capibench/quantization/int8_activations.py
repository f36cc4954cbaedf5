"""int8 weights times int8 activations: the only products here that multiply whole numbers.

Weight-only methods save bytes but still multiply floats, so that they lose where many rows make
arithmetic, not reading, the cost. Here both sides are int8 and the sums int32.

Activations are whole numbers `u` of 0 .. 2^bits - 1 with `x ≈ (u - zero_point) · scale`. Their
scale is either each row's own (`DynamicInt8Linear`: ZeroQuant, arXiv 2206.01861, section 4.1,
"token-wise"; LLM.int8(), arXiv 2208.07339, section 2), so that a row's result does not depend on
its neighbours in the batch, or one fixed number from calibration (`StaticInt8Linear`: Jacob et
al., arXiv 1712.05877, section 2.1).

x86 without VNNI adds pairs of u8 × s8 products in *saturating* 16 bits (vpmaddubsw): 255 · 127 · 2
does not fit, and sums are silently wrong. With 7 bits, 127 · 128 · 2 fits. Which of the two a
library needs on this machine is not guessed from names but tried (`exact_bits`).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from capibench.errors import ConfigError

Kernel = Literal["auto", "fbgemm", "onednn"]
OPERATORS = {
    "fbgemm": "quantized::linear_with_input_q_dq_qweight_dq_output_fp32 (fbgemm)",
    "onednn": "onednn::qlinear_pointwise",
    "int_mm": "aten::_int_mm",
}
# What the int8 kernels of GPUs ask of a layer's inputs (CUTLASS: 16 bytes); those of CPUs take any.
IN_FEATURES_MULTIPLE = 16
_SMALLEST_PEAK = 1e-30  # a row of zeros is divided by this
_INT_MM_MIN_ROWS = 17  # of CUDA's int8 product, whose sizes are also multiples of 8


class Int8Product(Protocol):
    """One packed weight matrix [out, in] and its int8 kernel."""

    packed_bytes: int  # memory of its own, which no parameter or buffer shows

    def __call__(self, rows: Tensor, scale: float, zero_point: int) -> Tensor:
        """float32 `rows` [n, in] → float32 [n, out], from `u = round(rows / scale) + zero_point`,
        which the caller keeps within the grid of `exact_bits`."""

    def weight(self) -> tuple[Tensor, Tensor]:
        """int8 [out, in] and the scale of each output channel [out], as packed."""


class FbgemmProduct:
    """Quantizes inside the product: one pass less over the activations, and the fastest where a
    CPU has no VNNI. It packs inputs in blocks, so that narrow matrices take more memory."""

    def __init__(self, q: Tensor, scales: Tensor) -> None:
        zero_points = torch.zeros(len(q), dtype=torch.long)
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # Tensors of dtype qint8 are deprecated; this operator has no other way in.
            warnings.filterwarnings("ignore", category=UserWarning)
            weight = torch._make_per_channel_quantized_tensor(q, scales.double(), zero_points, 0)
            torch.backends.quantized.engine = "fbgemm"
            try:
                self._packed: Any = torch.ops.quantized.linear_prepack(weight, None)
            finally:
                torch.backends.quantized.engine = engine
        in_block, out_block = _fbgemm_blocks()
        num_out, num_in = q.shape
        padded = -(-num_in // in_block) * in_block * -(-num_out // out_block) * out_block
        self.packed_bytes = padded + 12 * num_out  # scale, zero point and sum of each channel

    def __call__(self, rows: Tensor, scale: float, zero_point: int) -> Tensor:
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        result: Tensor = multiply(rows, scale, zero_point, self._packed)
        return result

    def weight(self) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            weight = self._packed.unpack()[0]
            return weight.int_repr(), weight.q_per_channel_scales().float()


class OnednnProduct:
    """Uses VNNI and AMX where a CPU has them."""

    def __init__(self, q: Tensor, scales: Tensor) -> None:
        self._packed: Tensor = torch.ops.onednn.qlinear_prepack(q, None)
        self._scales = scales.float()
        self._zero_points = torch.zeros(len(q), dtype=torch.long)
        held = self._scales.nbytes + self._zero_points.nbytes
        self.packed_bytes = int(torch.ops.mkldnn._nbytes(self._packed)) + held

    def __call__(self, rows: Tensor, scale: float, zero_point: int) -> Tensor:
        u = (rows * (1 / scale)).add_(zero_point).round_().clamp_(0, 255).to(torch.uint8)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            u,
            scale,
            zero_point,
            self._packed,
            self._scales,
            self._zero_points,
            None,  # bias
            1.0,  # scale and zero point of the result, which stays float
            0,
            torch.float32,
            "none",  # nothing is fused behind it
            [],
            "",
        )
        return result

    def weight(self) -> tuple[Tensor, Tensor]:
        return self._packed.to_dense().t().contiguous(), self._scales


class CudaProduct:
    """The tensor cores' int8 product. Rows are padded to the fewest that it takes."""

    def __init__(self, q: Tensor, scales: Tensor) -> None:
        self._num_out = len(q)
        self._q = functional.pad(q, (0, 0, 0, -len(q) % 8)).contiguous()
        self._scales = scales.float()
        self._sums = q.sum(dim=1, dtype=torch.int32)
        self.packed_bytes = self._q.nbytes + self._scales.nbytes + self._sums.nbytes

    def __call__(self, rows: Tensor, scale: float, zero_point: int) -> Tensor:
        shifted = zero_point - 128  # its activations are signed
        u = (rows * (1 / scale)).add_(shifted).round_().clamp_(-128, 127).to(torch.int8)
        missing = max(0, _INT_MM_MIN_ROWS - len(u))
        sums = torch._int_mm(functional.pad(u, (0, 0, 0, missing)), self._q.t())
        sums = sums[: len(u), : self._num_out] - shifted * self._sums
        return sums * (self._scales * scale)

    def weight(self) -> tuple[Tensor, Tensor]:
        return self._q[: self._num_out], self._scales


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """What one layer's activations are quantized with, as stored: `x ≈ (q - zero_point) · scale`
    with `q` in -128 .. 127."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale: got {self.scale}; expected a positive number")
        if not -128 <= self.zero_point <= 127:
            raise ValueError(f"zero_point: got {self.zero_point}; expected -128 to 127")

    def on_grid(self, bits: int) -> tuple[float, int]:
        """Scale and zero point that spread the same range over 0 .. 2^bits - 1."""
        unsigned = self.zero_point + 128
        if bits == 8:
            return self.scale, unsigned
        top = 2**bits - 1
        return self.scale * 255 / top, round(unsigned * top / 255)


class Int8ActivationLinear(nn.Module, ABC):
    """`y = dequantized(quantized(x)) · dequantized(W)ᵀ + b`, in the dtype of `x`."""

    bias: Tensor | None

    def __init__(self, product: Int8Product, bias: Tensor | None) -> None:
        super().__init__()
        self.product = product
        q, _ = product.weight()
        self.out_features, self.in_features = q.shape
        self.register_buffer("bias", bias)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights, which are neither parameter nor buffer."""
        return self.product.packed_bytes

    def bytes_read(self, num_rows: int) -> int:
        """Bytes of weights, scales and bias that one call reads, whatever the number of rows."""
        return self.packed_bytes + (0 if self.bias is None else self.bias.nbytes)

    def dequantized_weight(self) -> Tensor:
        """float32 [out, in]."""
        q, scales = self.product.weight()
        return q.float() * scales[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] → [..., out], in the dtype of `x`."""
        y = self._multiply(x.reshape(-1, self.in_features).float())
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    @abstractmethod
    def _multiply(self, rows: Tensor) -> Tensor:
        """float32 [n, in] → float32 [n, out], without the bias."""


class DynamicInt8Linear(Int8ActivationLinear):
    """Every row (token) is quantized with the scale of its own largest magnitude."""

    def __init__(self, product: Int8Product, bias: Tensor | None, bits: int) -> None:
        super().__init__(product, bias)
        self._middle = 2 ** (bits - 1)
        self._scale = 1 / (self._middle - 1)

    def _multiply(self, rows: Tensor) -> Tensor:
        # With every row stretched to -1 .. 1 one scale fits all of them. (The vector norm that
        # would do it in one call is not vectorised, and ten times slower for many rows.)
        peaks = rows.abs().amax(dim=1, keepdim=True).clamp_(min=_SMALLEST_PEAK)
        return self.product(rows / peaks, self._scale, self._middle).mul_(peaks)


class StaticInt8Linear(Int8ActivationLinear):
    """All rows are quantized with one calibrated scale; what lies outside its range is clipped."""

    def __init__(
        self, product: Int8Product, bias: Tensor | None, bits: int, stored: ActivationRange
    ) -> None:
        super().__init__(product, bias)
        self._scale, self._zero_point = stored.on_grid(bits)
        self._low = -self._zero_point * self._scale
        self._high = (2**bits - 1 - self._zero_point) * self._scale

    def _multiply(self, rows: Tensor) -> Tensor:
        return self.product(rows.clamp(self._low, self._high), self._scale, self._zero_point)


@dataclass(frozen=True, slots=True)
class Int8Kernel:
    """What multiplies on this machine, and with how many bits of activation it is exact."""

    name: Literal["fbgemm", "onednn", "int_mm"]
    bits: int

    def pack(self, q: Tensor, scales: Tensor) -> Int8Product:
        """`q` int8 [out, in] with `scales` [out], ready to be multiplied with."""
        return _PRODUCTS[self.name](q, scales)

    def __str__(self) -> str:
        why = "reduce_range: its sums of 8-bit products saturate on this CPU"
        bits = "8-bit activations" if self.bits == 8 else f"{self.bits}-bit activations ({why})"
        return f"{OPERATORS[self.name]} for any number of rows, {bits}"


_PRODUCTS: dict[str, type[FbgemmProduct] | type[OnednnProduct] | type[CudaProduct]] = {
    "fbgemm": FbgemmProduct,
    "onednn": OnednnProduct,
    "int_mm": CudaProduct,
}


def choose_kernel(kernel: Kernel, device: torch.device) -> Int8Kernel:
    """The kernel that a choice means on `device`.

    `auto`: oneDNN where the CPU multiplies int8 in hardware (VNNI, AMX), else FBGEMM.
    Measured on Zen 3 (AVX2 without VNNI), one thread, milliseconds of a 2048×5632 layer at
    1 / 4 / 16 / 128 / 512 rows: FBGEMM 0.7 / 1.0 / 2.7 / 20 / 75, oneDNN 2.6 / 3.0 / 4.7 / 20 / 72,
    float32 2.6 / 8.5 / 12 / 45 / 141.

    Raises:
        ConfigError: this build of PyTorch has no such kernel for the device.
    """
    if device.type == "cuda":
        if kernel != "auto":
            raise ConfigError("quantization.kernel", f"got {kernel!r} on a GPU; expected auto")
        return Int8Kernel("int_mm", exact_bits("int_mm", device))
    engines = torch.backends.quantized.supported_engines
    if kernel == "auto":
        kernel = "onednn" if _multiplies_int8() or "fbgemm" not in engines else "fbgemm"
    if kernel not in engines:
        raise ConfigError(
            "quantization.kernel", f"got {kernel!r}; this PyTorch has {', '.join(engines)}"
        )
    return Int8Kernel(kernel, exact_bits(kernel, device))


@cache
def exact_bits(name: Literal["fbgemm", "onednn", "int_mm"], device: torch.device) -> int:
    """The most bits of activation, 8 or 7, with which a kernel's sums are exact on this machine.

    Raises:
        ConfigError: it is exact with neither.
    """
    for bits in (8, 7):
        if all(_exact(name, bits, num_rows, device) for num_rows in (1, 6, 80)):
            return bits
    raise ConfigError("quantization.kernel", f"{name} multiplies wrongly on this machine")


def _exact(name: str, bits: int, num_rows: int, device: torch.device) -> bool:
    """Whether the largest products that there are come out as they must."""
    q = torch.tensor([127, -127, -128, 1], dtype=torch.int8).repeat(16)[:, None].repeat(1, 528)
    u = torch.full((num_rows, 528), 2**bits - 1)
    u[1::2, ::3] = 0
    zero_point = 2 ** (bits - 1)
    product = _PRODUCTS[name](q.to(device), torch.ones(len(q), device=device))
    y = product((u - zero_point).float().to(device), 1.0, zero_point)
    expected = (u - zero_point).double() @ q.double().T
    return torch.equal(y.double().cpu(), expected)


def _multiplies_int8() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _fbgemm_blocks() -> tuple[int, int]:
    """Inputs and output channels of the blocks to which FBGEMM pads (its PackingTraits-inl.h)."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("avx512_vnni", False):
        return 512, 48
    if capabilities.get("avx512_f", False):
        return 256, 32
    return 512, 8
