"""Rounding in which the weights not yet rounded make good the error of those that are.

The inputs of a layer are rounded one after the other; what each changes in the layer's output is
taken back, as far as it can be, by the inputs still to come: the step of GPTQ (Frantar et al.,
arXiv 2210.17323, section 3, algorithm 1), which needs no more of a layer's inputs x than their
second moments E[xxᵀ]. Where these come from is `random_tokens`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from capibench.errors import ConfigError
from capibench.quantization.quantized_weight import QuantizedWeight
from capibench.quantization.rounding import SCALE_DTYPE, fit_grid, grid_points, whole_groups

_BLOCK = 128  # inputs whose feedback to the later ones is one product


def round_with_feedback(
    weight: Tensor,
    moments: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    damp_percent: float,
) -> QuantizedWeight:
    """Grid points with which the layer's output changes less than with the closest ones.

    Args:
        weight: [out, in].
        moments: E[xxᵀ] of the layer's inputs, float32 [in, in].
        bits, group_size, symmetric: as for `round_to_nearest`; a group's grid is fitted to its
            weights with the feedback of the groups before it.
        damp_percent: share of the mean second moment that is added to each, above 0; the higher,
            the closer to plain rounding.

    Raises:
        ValueError: in_features is no multiple of `group_size`.
        ConfigError: the damped moments cannot be inverted.
    """
    num_out, num_in = weight.shape
    size = whole_groups(num_in, group_size)
    factor = _inverse_factor(moments, damp_percent)
    left = weight.detach().float().T.contiguous()  # [in, out]; changes as errors come back
    q = torch.empty(num_in, num_out, dtype=torch.uint8, device=weight.device)
    scales, zeros = (torch.empty(num_out, num_in // size, device=weight.device) for _ in range(2))
    for start in range(0, num_in, size):
        scale, zero = fit_grid(left[start : start + size].T, bits, symmetric)
        scales[:, start // size], zeros[:, start // size] = scale, zero
        for first in range(start, start + size, _BLOCK):
            end = min(first + _BLOCK, start + size)
            errors = torch.empty(end - first, num_out, device=weight.device)
            for i in range(first, end):
                point = grid_points(left[i], scale, zero, bits)
                q[i] = point.to(torch.uint8)
                error = (left[i] - (point - zero) * scale) / factor[i, i]
                left[i + 1 : end] -= factor[i, i + 1 : end, None] * error
                errors[i - first] = error
            left[end:] -= factor[first:end, end:].T @ errors
    return QuantizedWeight(
        q=q.T.contiguous(),
        scales=scales.to(SCALE_DTYPE),
        zeros=zeros.to(torch.uint8),
        bits=bits,
        group_size=size,
    )


def _inverse_factor(moments: Tensor, damp_percent: float) -> Tensor:
    """Upper triangular U with UᵀU the inverse of the damped moments."""
    damped = moments.clone()
    diagonal = damped.diagonal()
    mean = float(diagonal.mean())
    # A layer that saw only zeros has no output to keep: any positive number makes it rounding.
    diagonal += damp_percent * mean if mean > 0 else 1.0
    lower, failed = torch.linalg.cholesky_ex(damped)
    factor: Tensor = lower
    if not failed:
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or not bool(torch.isfinite(factor).all()):
        raise ConfigError(
            "quantization.feedback.damp_percent",
            f"got {damp_percent}; expected more, or more tokens: inputs depend on each other or "
            "are not finite",
        )
    return factor
