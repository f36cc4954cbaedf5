"""Which layers must not be rounded coarsely: the damage that each does alone.

Layers differ by orders of magnitude in what rounding them costs, so that a few of them at more
bits buy most of the lost quality back. The damage is measured, not estimated from second
derivatives (HAWQ-V2, arXiv 1911.03852, section 3): one layer after the other is rounded, all
others left as they are, and the mean KL divergence from the unquantized model taken. How the
figures become a choice of bits is `mixed_plan.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.model.language_model import LanguageModel
from capibench.quantization.layers import choose_linears, weight_of
from capibench.quantization.quality import kl_divergence, token_windows, window_logits

FakeQuantize = Callable[[Tensor, int], Tensor]
"""(weight [out, in] float32, bits) to the float32 weight that the integers stand for."""


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What quantizing only this layer does to the model's predictions."""

    name: str
    num_weights: int
    kl: Mapping[int, float]  # bits to mean divergence per token, nats


def sensitivity(
    model: LanguageModel,
    texts: Sequence[str],
    fake_quantize: FakeQuantize,
    bits: Sequence[int],
    skip_modules: Sequence[str],
    max_tokens: int,
    window: int,
) -> list[LayerSensitivity]:
    """Linear layers by the damage of their coarsest rounding, the worst first.

    One forward pass over the tokens for each layer and bit width, and float32 logits of all
    tokens in memory (1,000 tokens of a vocabulary of 32,000: 128 MB); so few tokens suit.

    Args:
        model: is as before afterwards.
        texts: calibration text, not the held-out one on which the result is judged.
        fake_quantize: the rounding, on the weight in float32.
        bits: the widths to try.
        skip_modules: full names, or last parts of names, of layers that stay as they are.
        max_tokens: scored tokens at most.
        window: tokens that the model sees at once, at least 2.

    Raises:
        ValueError: no bits, or the texts have no window of two tokens.
        ConfigError: no linear layer is left.
    """
    if not bits:
        raise ValueError("bits: got none; expected at least one width")
    layers, _ = choose_linears(model.module, skip_modules)
    windows = token_windows(model, texts, max_tokens, window)
    expected = [window_logits(model.module, ids) for ids in windows]

    def damage(layer: nn.Linear | Conv1D, width: int) -> float:
        original = layer.weight
        rounded = fake_quantize(weight_of(layer).float(), width).to(original)
        if isinstance(layer, Conv1D):
            rounded = rounded.T
        # A new parameter, not new values: the old one may be the embedding too.
        layer.weight = nn.Parameter(rounded, requires_grad=False)
        try:
            got = (window_logits(model.module, ids) for ids in windows)
            pairs = zip(expected, got, strict=True)
            return float(torch.cat([kl_divergence(*pair) for pair in pairs]).mean())
        finally:
            layer.weight = original

    found = [
        LayerSensitivity(
            name, layer.weight.numel(), {width: damage(layer, width) for width in sorted(set(bits))}
        )
        for name, layer in layers.items()
    ]
    return sorted(found, key=lambda layer: layer.kl[min(bits)], reverse=True)
