"""A linear layer whose weights stay packed: 2 to 8 bits in memory, fast for few rows and for many.

With few rows (sequences × positions) reading the weights is what costs, and packed ones are a
quarter of the bytes or less. With many rows arithmetic costs, which is the ordinary matrix
product's strength: the weights are then unpacked tile by tile into a buffer that fits the cache,
and each tile is multiplied by it. Weights of 3 bits are held in 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from capibench.model.precision import native_precision
from capibench.quantization import packed_kernels
from capibench.quantization.quantized_weight import QuantizedWeight

_HELD_IN = {2: 2, 3: 4, 4: 4, 8: 8}
# Features and group sizes are multiples of it, so that words of a checkpoint are full and hold
# one group only. By bits.
WHOLE_WORDS = {2: 16, 3: 32, 4: 8, 8: 4}
_TILE_BYTES = 2 << 20  # of unpacked weights: small enough for the cache, large enough for a product
_PORTABLE_BLOCK = 16  # without compiled kernels any block does


class PackedLinear(nn.Module):
    """`y = x Ŵᵀ + b`, the layout of the weights that of `packed_kernels.cpp`."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    order: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        dtype: torch.dtype,
        packed_max_rows: int,
    ) -> None:
        """
        Args:
            weight: groups may be in any order, but all of the same size.
            bias: [out] or None.
            dtype: of the layer's input and output.
            packed_max_rows: up to this many rows the packed kernel multiplies.
        """
        super().__init__()
        self.out_features, self.in_features = weight.q.shape
        self.bits = _HELD_IN[weight.bits]
        self.group_size = weight.group_size
        self.dtype = dtype
        self.packed_max_rows = packed_max_rows
        self.compiled = packed_kernels.problem() is None
        block = packed_kernels.block() if self.compiled else _PORTABLE_BLOCK
        q = weight.q
        order = None
        if weight.groups is not None:
            order = torch.argsort(weight.groups, stable=True)
            q = q[:, order]
        self.register_buffer("packed", _pack(_blocks(q, block), self.bits))
        self.register_buffer("scales", _blocks(weight.scales.float(), block))
        self.register_buffer("zeros", _blocks(weight.zeros, block))
        self.register_buffer("order", order)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] → [..., out], in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features)
        if self.order is not None:
            rows = rows[:, self.order]
        if not self.compiled:
            y = functional.linear(rows, self._unpacked().to(x.dtype))
        elif rows.shape[0] <= self.packed_max_rows:
            y = packed_kernels.multiply(
                self.bits, rows.float().contiguous(), self.packed, self.scales, self.zeros,
                self.group_size,
            ).to(x.dtype)  # fmt: skip
        else:
            y = self._multiply_tiles(rows)
        y = y[:, : self.out_features]
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def _multiply_tiles(self, rows: Tensor) -> Tensor:
        """The product, Wᵀ unpacked a tile of output channels at a time."""
        # Emulated bf16 products cost many times those of fp32.
        exact = rows.dtype == torch.bfloat16 and native_precision() != "bf16"
        dtype = torch.float32 if exact else rows.dtype
        inputs = rows.to(dtype)
        num_blocks, _, block = self.packed.shape
        per_tile = max(1, _TILE_BYTES // (self.in_features * block * dtype.itemsize))
        y = torch.empty(rows.shape[0], num_blocks * block, dtype=rows.dtype)
        buffer = torch.empty(self.in_features * min(per_tile, num_blocks) * block, dtype=dtype)
        for first in range(0, num_blocks, per_tile):
            width = min(per_tile, num_blocks - first) * block
            tile = buffer[: self.in_features * width].view(self.in_features, width)
            packed_kernels.dequantize(
                self.bits, self.packed, self.scales, self.zeros, self.group_size, first, tile
            )
            y[:, first * block : first * block + width] = inputs @ tile
        return y

    def _unpacked(self) -> Tensor:
        """float32 [out, in], inputs in the order of their groups; by PyTorch alone."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32, device=self.packed.device)
        q = (self.packed[:, :, None, :] >> shifts[:, None]) & (2**self.bits - 1)
        q = q.reshape(self.packed.shape[0], self.in_features, self.packed.shape[2]).float()
        zeros = self.zeros.float().repeat_interleave(self.group_size, dim=1)
        scales = self.scales.repeat_interleave(self.group_size, dim=1)
        transposed: Tensor = (q - zeros) * scales  # [blocks, in, block]
        return transposed.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]

    def dequantized_weight(self) -> Tensor:
        """float32 [out, in]: what this layer multiplies by."""
        weight = self._unpacked()
        return weight if self.order is None else weight[:, self.order.argsort()]

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bits={self.bits}, "
            f"group_size={self.group_size}"
        )


def _blocks(values: Tensor, block: int) -> Tensor:
    """[out, n] → [blocks, n, block], missing channels filled with 0."""
    num_out, n = values.shape
    padded = functional.pad(values, (0, 0, 0, -num_out % block))
    return padded.view(-1, block, n).transpose(1, 2).contiguous()


def _pack(q: Tensor, bits: int) -> Tensor:
    """uint8 [blocks, in, block] → int32 [blocks, in · bits / 32, block], lowest bits first."""
    num_blocks, num_in, block = q.shape
    per = 32 // bits
    fields = q.view(num_blocks, num_in // per, per, block)
    words = torch.zeros(num_blocks, num_in // per, block, dtype=torch.int32)
    for position in range(per):
        words |= fields[:, :, position].int() << (position * bits)
    return words
