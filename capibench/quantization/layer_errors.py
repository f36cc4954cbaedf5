"""How wrong each quantized layer is, apart from what the layers before it did.

The figures of whole models say that something was lost; these say where. The weight error is what
rounding did to the matrix; the output error weighs it with the activations that really occur, and
includes what a kernel does to them (rounded activations, say). Layer-wise output error is what
GPTQ minimises (Frantar et al., arXiv 2210.17323, section 3), so a method can have the larger
weight error and the smaller output error. Every layer sees the inputs that it has in the
unquantized model; errors of earlier layers do not accumulate in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.quantization.layers import weight_of

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@runtime_checkable
class Dequantizable(Protocol):
    """What a quantized layer has where its weights can be told from its integers."""

    def dequantized_weight(self) -> Tensor:
        """float32 [out, in]."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """One linear layer; 0 where the quantized model left it as it was."""

    name: str
    # Frobenius norm of dequantized minus original over that of the original; None: the layer does
    # not tell its weights.
    weight_relative_error: float | None
    # The same norms of the layer's outputs; None: the batches never reached it.
    output_relative_error: float | None
    num_outputs: int  # compared numbers: rows times out_features


def layer_errors(
    reference: nn.Module, quantized: nn.Module, batches: Iterable[Tensor]
) -> list[LayerError]:
    """The errors of all layers that are linear in `reference`, in its order.

    Both outputs are computed while the batches run through `reference`, so that no activations
    are kept.

    Args:
        reference: the unquantized model; called with `input_ids`.
        quantized: its layers under the same names.
        batches: token ids int64 [rows, length] each.

    Raises:
        ValueError: `reference` has no linear layer, or `quantized` lacks one of its layers.
    """
    linears = {n: m for n, m in reference.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    if not linears:
        raise ValueError("reference: has no linear layer; expected a model made of them")
    layers = dict(quantized.named_modules())
    for name in linears:
        if name not in layers:
            raise ValueError(f"quantized: has no layer {name}; expected the reference's layers")
    outputs = {name: _Relative() for name in linears}
    dtype = _hidden_dtype(quantized)
    handles = [
        linear.register_forward_hook(_compare_with(layers[name], dtype, outputs[name]))
        for name, linear in linears.items()
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                reference(input_ids=batch.to(next(reference.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        LayerError(name, _weight_error(linear, layers[name]), outputs[name].value, outputs[name].n)
        for name, linear in linears.items()
    ]


class _Relative:
    """Frobenius norm of differences over that of the true values, over any number of parts."""

    def __init__(self) -> None:
        self.n = 0
        self._error = 0.0
        self._size = 0.0

    def add(self, true: Tensor, got: Tensor) -> None:
        exact = true.double()
        self._error += float((got.to(true.device).double() - exact).square().sum())
        self._size += float(exact.square().sum())
        self.n += true.numel()

    @property
    def value(self) -> float | None:
        if self.n == 0:
            return None
        if self._size == 0.0:
            return 0.0 if self._error == 0.0 else math.inf
        return math.sqrt(self._error / self._size)


def _compare_with(layer: nn.Module, dtype: torch.dtype | None, into: _Relative) -> Hook:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        into.add(output, layer(args[0] if dtype is None else args[0].to(dtype)))

    return hook


def _hidden_dtype(module: nn.Module) -> torch.dtype | None:
    """What the layers of `module` are given: the precision of what is not quantized in it."""
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, None)


def _weight_error(linear: nn.Linear | Conv1D, layer: nn.Module) -> float | None:
    if isinstance(layer, Dequantizable):
        weight = layer.dequantized_weight()
    elif isinstance(layer, nn.Linear | Conv1D):
        weight = weight_of(layer)
    else:
        return None
    error = _Relative()
    error.add(weight_of(linear), weight)
    return error.value
