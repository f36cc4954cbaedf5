"""Integers, scales and zero points of one weight matrix: what every weight-only method makes,
every checkpoint format stores, and every kernel multiplies with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """`weight[o, i] ≈ (q[o, i] - zeros[o, g]) · scales[o, g]` with `g = groups[i]`.

    Zero points are whole numbers on the same grid as `q` (0 .. 2^bits - 1), so that a weight of
    exactly 0 can be kept exactly. `groups` is None where the inputs of a group stand side by side
    (`g = i // group_size`); with activation order they do not.
    """

    q: Tensor  # uint8 [out, in]
    scales: Tensor  # float [out, num_groups], in the precision that is stored
    zeros: Tensor  # uint8 [out, num_groups]; half of the range where the grid is symmetric
    bits: int
    group_size: int  # inputs per group; in_features where each output channel is one group
    groups: Tensor | None = None  # int64 [in], the group of every input

    def __post_init__(self) -> None:
        num_out, num_in = self.q.shape
        num_groups = -(-num_in // self.group_size)
        assert self.scales.shape == self.zeros.shape == (num_out, num_groups)
        assert self.groups is None or self.groups.shape == (num_in,)

    @property
    def group_of_input(self) -> Tensor:
        """int64 [in]."""
        if self.groups is not None:
            return self.groups
        return torch.arange(self.q.shape[1]) // self.group_size

    def dequantized(self) -> Tensor:
        """float32 [out, in]."""
        group = self.group_of_input.to(self.q.device)
        scales = self.scales.float()[:, group]
        return (self.q.float() - self.zeros.float()[:, group]) * scales
