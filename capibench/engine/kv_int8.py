"""Keys and values kept as int8: about a quarter of fp32's bytes per position, half of bf16's.

A batch's cache grows with every token of every row, and at long contexts it outgrows the weights.
Here each position of each head is rounded symmetrically with a scale of its own:
`q = round(x / s)`, `s = max |x| / 127` over the head's channels.

Why one scale per token and head, for keys too: KIVI (arXiv 2402.02750, section 3) finds that keys
have channels of outliers and wants their scales per channel; that decides at 2 bits, and it needs
either groups of tokens that are kept exact until they are full or scales fixed in advance. At 8
bits it decides nothing on the shipped model (150 held-out windows, fp32, all positions rounded;
KL to the exact cache, perplexity ratio):

    per token and head, symmetric               4.4e-5   1.0002   (chosen)
    per token and head, asymmetric              3.3e-5   1.0001   and a zero point to store
    keys per channel, values per token, sym.    3.8e-5   1.0001   and whole columns to requantize
    one scale per head                          1.1e-4   1.0004

Models with stronger outliers may differ, which is why a run with this cache measures its own
quality (`capibench.engine.kv_quality`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def quantize_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `q` [..., positions, head size] and `s` [..., positions, 1] in the dtype of `states`,
    so that `q · s ≈ states`.

    The scale is rounded to its stored dtype first and the states are divided by what is stored.
    A position of zeros has the scale 1.
    """
    exact = states.float()
    scales = (exact.abs().amax(dim=-1, keepdim=True) / 127).to(states.dtype)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    q = (exact / scales.float()).round_().clamp_(-127, 127).to(torch.int8)
    return q, scales


class Int8States:
    """Keys or values of one layer as int8 with scales, in memory reserved for all positions that
    the batch can reach."""

    def __init__(self, states: Tensor, num_positions: int) -> None:
        rows, heads, _, size = states.shape
        self.q = states.new_empty((rows, heads, num_positions, size), dtype=torch.int8)
        self.scales = states.new_empty((rows, heads, num_positions, 1))

    def append(self, states: Tensor, begin: int) -> Tensor:
        """Store `states` [rows, heads, new positions, head size] from position `begin` on.

        Returns what attention is to see: the positions before `begin` widened to the dtype of
        `states`, then `states` as they are. Only the past is rounded, so that a prefill is exact
        and widens nothing.
        """
        end = begin + states.shape[-2]
        self.q[:, :, begin:end], self.scales[:, :, begin:end] = quantize_states(states)
        if begin == 0:
            return states
        rows, heads, _, size = states.shape
        seen = states.new_empty((rows, heads, end, size))
        # Widened first and scaled in place: with mixed dtypes mul would make one more copy.
        seen[:, :, :begin].copy_(self.q[:, :, :begin]).mul_(self.scales[:, :, :begin])
        seen[:, :, begin:] = states
        return seen

    def select(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self.q, self.scales = self.q[indices], self.scales[indices]


class Int8Layer(DynamicLayer):  # type: ignore[misc]  # its base has no types
    """The cache of one layer. What it returns lives as long as the attention that reads it: one
    layer's past is widened at a time, and no layer keeps a widened copy."""

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self._num_positions = num_positions
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.key_states = Int8States(key_states, self._num_positions)
        self.value_states = Int8States(value_states, self._num_positions)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the new positions; return all so far, the past ones as they were rounded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self._used
        self._used += key_states.shape[-2]
        return self.key_states.append(key_states, begin), self.value_states.append(
            value_states, begin
        )

    def get_seq_length(self) -> int:
        return self._used

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self.key_states.select(indices)
        self.value_states.select(indices)
