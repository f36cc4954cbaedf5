"""Round-to-nearest: every weight to the closest point of its group's grid, nothing else moved.

The method that needs no data, and the yardstick for those that do. Symmetric grids are centred on
zero (scale from the largest magnitude), asymmetric ones span the group's smallest and largest
weight (Jacob et al., arXiv 1712.05877, section 2.1). Scales are rounded to their stored precision
first and the weights are divided by what is stored: rounding it afterwards would shift a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.errors import ConfigError
from capibench.quantization.layers import weight_of
from capibench.quantization.quantized_weight import QuantizedWeight

SCALE_DTYPE = torch.float16  # what checkpoints of this format hold
_SMALLEST_SCALE = 2.0**-24  # smallest positive float16


def round_to_nearest(
    weight: Tensor, bits: int, group_size: int, symmetric: bool
) -> QuantizedWeight:
    """The grid points closest to `weight` [out, in].

    Args:
        bits: 2 to 8; the grid has 2^bits points.
        group_size: inputs that share a scale; 0: the whole output channel.
        symmetric: zero point in the middle of the grid; else fitted to the group's range.

    Raises:
        ValueError: in_features is no multiple of `group_size`, or a scale cannot be stored.
    """
    num_out, num_in = weight.shape
    size = whole_groups(num_in, group_size)
    grouped = weight.detach().float().reshape(num_out, num_in // size, size)
    scales, zeros = fit_grid(grouped, bits, symmetric)
    q = grid_points(grouped, scales[..., None], zeros[..., None], bits)
    return QuantizedWeight(
        q=q.to(torch.uint8).reshape(num_out, num_in),
        scales=scales.to(SCALE_DTYPE),
        zeros=zeros.to(torch.uint8),
        bits=bits,
        group_size=size,
    )


def check_scales(
    layers: Mapping[str, nn.Linear | Conv1D], bits: int, group_size: int, symmetric: bool
) -> None:
    """Raise ConfigError where a layer's scales cannot be stored, before any work is done."""
    for name, layer in layers.items():
        weight = weight_of(layer).float()
        size = whole_groups(weight.shape[1], group_size)
        try:
            fit_grid(weight.reshape(weight.shape[0], -1, size), bits, symmetric)
        except ValueError as error:
            raise ConfigError(
                "quantization.bits", f"{bits} bits: {name}: {error}; or name it in skip_modules"
            ) from error


def whole_groups(num_in: int, group_size: int) -> int:
    """Inputs in a group, of which 0 means all; ValueError unless it divides `num_in`."""
    size = group_size or num_in
    if num_in % size:
        raise ValueError(f"group_size: got {size}; expected a divisor of in_features={num_in}")
    return size


def fit_grid(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each group in `groups` [..., size]: float32 [...], the scales as
    they are stored, the zero points whole numbers."""
    top = 2**bits - 1
    middle = 2 ** (bits - 1)
    if symmetric:
        # Half a step beyond the grid's upper end and inside its lower one, as in GPTQ's grids.
        scales = _stored(groups.abs().amax(-1) / (middle - 0.5))
        return scales, torch.full_like(scales, middle)
    low = groups.amin(-1).clamp(max=0.0)
    high = groups.amax(-1).clamp(min=0.0)
    scales = _stored((high - low) / top)
    return scales, (-low / scales).round().clamp_(0, top)


def grid_points(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """The number, 0 to 2^bits - 1, of the grid point closest to each weight; float32."""
    return (weight / scales).round_().add_(zeros).clamp_(0, 2**bits - 1)


def _stored(scales: Tensor) -> Tensor:
    """`scales` as float32 numbers that float16 holds exactly, none of them 0; ValueError where it
    cannot hold one."""
    stored = scales.clamp(min=_SMALLEST_SCALE).to(SCALE_DTYPE).float()
    if not bool(stored.isfinite().all()):
        raise ValueError(
            f"got weights that need a scale of {float(scales.max()):.3g}; expected at most "
            f"{torch.finfo(SCALE_DTYPE).max:g}, which float16 holds: more bits make it smaller"
        )
    return stored
