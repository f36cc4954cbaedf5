"""AWQ's two searches (arXiv 2306.00978, section 3.2), exact in float32 and fast enough for a CPU.

gptqmodel 7.6 drives AWQ here, but its own searches cannot run on a float32 model on a CPU: the one
for scales keeps "copies" of the weights that alias them (`.to(float32).cpu()` of what is float32 on
the CPU already), so that every step spoils the next; and the one for ranges multiplies each weight
with each calibration token one by one: out · in · tokens · 10 multiplications that no matrix
product helps with, hours for 10^9 weights. There the error of a group is the quadratic form
`(ŵ - w) H (ŵ - w)ᵀ` with `H = XᵀX / tokens` over the same tokens: the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

# AutoAWQ's own: exponents 0, 1/20, ... 19/20; ranges from the largest magnitude down to half of it.
_STEPS = 20
_TRIED_RANGES = 10
_MIN_TOKENS = 512
_CHUNK_OUT = 1024  # output channels at a time: bounds the memory


def best_scale(
    weights: Sequence[Tensor],
    weight_means: Tensor,
    input_means: Tensor,
    quantized: Callable[[Tensor], Tensor],
    reference: Callable[[], Iterable[Tensor]],
    output: Callable[[], Iterable[Tensor]],
) -> tuple[Tensor, float]:
    """The factors of the input channels with which quantizing changes the output least.

    Args:
        weights: [out, in] each, of all layers that share these inputs; changed during the search
            and as they were after it.
        weight_means: [in], mean magnitude of each channel's weights, relative to their group's
            largest.
        input_means: [in], mean magnitude of each channel's inputs.
        quantized: a matrix to its grid and back, the same shape.
        reference: the output of the block around the layers with their exact weights, in parts.
        output: the same with the weights as they are now.

    Returns:
        The factors [in], and the mean squared error with them.
    """
    originals = [weight.clone() for weight in weights]
    best, least = torch.ones_like(input_means), float("inf")
    for step in range(_STEPS):
        exponent = step / _STEPS
        scales = input_means.pow(exponent) / (weight_means.pow(1 - exponent) + 1e-4)
        scales = scales.clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        scales = torch.where(scales.isfinite(), scales, 1.0)
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(quantized(original * scales) / scales)
        squares, count = 0.0, 0
        for exact, found in zip(reference(), output(), strict=True):
            squares += float((exact - found).float().pow(2).sum())
            count += found.numel()
        if squares / count < least:
            best, least = scales, squares / count
    for weight, original in zip(weights, originals, strict=True):
        weight.copy_(original)
    return best, least


def best_clip(
    weight: Tensor, inputs: Tensor, group_size: int, quantized: Callable[[Tensor], Tensor]
) -> Tensor:
    """The magnitude at which clipping each group before quantizing it changes its output least.

    Args:
        weight: [out, in].
        inputs: [..., in], what the layer is multiplied with; of many tokens every n-th is used,
            so that at least 512 are.
        group_size: inputs per group, a divisor of in.
        quantized: [rows, group_size] to the same shape: each row to its own grid and back.

    Returns:
        [out, groups, 1], in the dtype of `weight`.
    """
    num_out, num_in = weight.shape
    num_groups = num_in // group_size
    rows = inputs.reshape(-1, num_in)
    rows = rows[:: max(1, rows.shape[0] // _MIN_TOKENS)].float()
    grouped = rows.reshape(-1, num_groups, group_size).transpose(0, 1)  # [groups, tokens, size]
    moments = grouped.transpose(1, 2) @ grouped / rows.shape[0]  # H of each group
    best = []
    for begin in range(0, num_out, _CHUNK_OUT):
        part = weight[begin : begin + _CHUNK_OUT].reshape(-1, num_groups, group_size)
        largest = part.abs().amax(dim=-1, keepdim=True)
        chosen = largest.clone()
        least = torch.full_like(largest, torch.inf, dtype=torch.float32)
        for step in range(_TRIED_RANGES):
            limit = largest * (1 - step / _STEPS)
            clipped = part.clamp(-limit, limit).reshape(-1, group_size)
            change = (quantized(clipped).reshape(part.shape) - part).float().transpose(0, 1)
            error = ((change @ moments) * change).sum(-1).t()[..., None]  # [out, groups, 1]
            better = error < least
            least = torch.where(better, error, least)
            chosen = torch.where(better, limit, chosen)
        best.append(chosen)
    return torch.cat(best)
