"""Puts a checkpoint of int8 weights into a model whose activations become int8 as it serves, and
says what multiplies them: one way for `dynamic` and `static`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from capibench.model.language_model import LanguageModel
from capibench.quantization.compressed_tensors import load_into
from capibench.quantization.int8_activations import (
    ActivationRange,
    Int8Product,
    Kernel,
    choose_kernel,
)
from capibench.quantization.layers import describe_kept
from capibench.quantization.sealed import read_seal

NewLayer = Callable[[Int8Product, Tensor | None, int, ActivationRange | None], nn.Module]
"""(packed weights, bias [out], bits of the activations, their range where it is stored)."""


def load_int8(
    model: LanguageModel, folder: Path, method: str, kernel: Kernel, new_layer: NewLayer, how: str
) -> tuple[LanguageModel, str]:
    """`model.module`, its linear layers replaced *in place*, and the kernel that they use.

    Args:
        method: that the seal of `folder` must name.
        how: activations are quantized, for the sentence on the kernel.

    Raises:
        DataError: a file is missing or damaged, or was made from other weights.
    """
    facts = read_seal(folder, method=method, model=model.fingerprint)
    chosen = choose_kernel(kernel, model.module.device)

    def replacement(
        q: Tensor, scales: Tensor, bias: Tensor | None, stored: ActivationRange | None
    ) -> nn.Module:
        return new_layer(chosen.pack(q, scales), bias, chosen.bits, stored)

    load_into(model.module, folder, facts["quantized"], replacement)
    num_layers = len(facts["quantized"])
    kept = describe_kept(facts["kept"], model.dtype)
    return model, f"{chosen}, {how}; {num_layers} layers{kept}"
