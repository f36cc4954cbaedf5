"""bf16 weights on a CPU that cannot multiply bf16: few rows as they are, many rows in fp32.

With few rows reading the weights is what costs, and PyTorch reads bf16 ones well on any CPU. With
many rows arithmetic costs, and without hardware for bf16 PyTorch emulates every product, several
times slower than in fp32. There the weights are widened to fp32, which is exact, tile by tile into
a buffer that fits the cache, and each tile is multiplied as any fp32 matrix. Sums are fp32 and
rounded to bf16 once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from capibench.model.precision import native_precision

# Measured on Zen 3 (AVX2), one thread, PyTorch 2.13: milliseconds emulated / widened for 1, 2, 3, 4
# and 16 rows. 1024×256: 0.065 / 0.071, 0.12 / 0.12, 0.18 / 0.14, 0.24 / 0.12, 0.98 / 0.20.
# 5632×2048: 2.4 / 4.1, 4.8 / 5.5, 7.8 / 6.3, 10 / 7.4, 36 / 11. From 3 rows on, smaller tiles (0.25
# to 1 MB) and larger ones (4 MB) were up to a third slower, none faster by more than noise.
_MIN_ROWS = 3
_TILE_BYTES = 2 << 20  # of widened weights: small enough for the cache, large enough for a product


class WidenedLinear(nn.Linear):
    """`y = x Wᵀ + b`, an `nn.Linear` in all but how it multiplies. In another type than bf16 it
    is `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gave it
        """`input` [..., in] → [..., out], in its dtype."""
        num_rows = input.numel() // self.in_features
        if num_rows < _MIN_ROWS or not self.weight.dtype == input.dtype == torch.bfloat16:
            return functional.linear(input, self.weight, self.bias)
        rows = input.reshape(num_rows, self.in_features).float()
        y = torch.empty(num_rows, self.out_features, dtype=torch.bfloat16)
        height = min(self.out_features, max(1, _TILE_BYTES // (self.in_features * rows.itemsize)))
        buffer = torch.empty(height, self.in_features)
        for begin in range(0, self.out_features, height):
            end = min(begin + height, self.out_features)
            tile = buffer[: end - begin].copy_(self.weight[begin:end])
            y[:, begin:end] = functional.linear(
                rows, tile, None if self.bias is None else self.bias[begin:end].float()
            )
        return y.view(*input.shape[:-1], self.out_features)


def widen_products(module: PreTrainedModel) -> None:
    """Make the linear layers of a bf16 model on such a CPU `WidenedLinear`, *in place*: their
    weights, tied ones too, their names and their hooks stay. Any other model stays as it is."""
    if (
        module.dtype != torch.bfloat16
        or module.device.type != "cpu"
        or native_precision() == "bf16"
    ):
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = WidenedLinear


def linear_kernels(module: nn.Module, dtype: str) -> str:
    """What multiplies in the linear layers of a model that is not quantized."""
    if any(
        isinstance(layer, WidenedLinear) and layer.weight.dtype == torch.bfloat16
        for layer in module.modules()
    ):
        return (
            f"aten::linear ({dtype}, emulated) for 1-{_MIN_ROWS - 1} rows, "
            "tiles widened + aten::linear (float32) for more"
        )
    return f"aten::linear ({dtype})"
