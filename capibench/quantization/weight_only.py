"""Puts the integers of a checkpoint into a model, and says what multiplies them.

Every weight-only method (round-to-nearest, GPTQ, AWQ, mixed) ends here: one layer, one set of
kernels, so that a difference between two methods is one of their numbers only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_precision
from capibench.quantization import packed_kernels
from capibench.quantization.gpu import load_on_gpu
from capibench.quantization.layers import describe_kept, weight_of
from capibench.quantization.packed_linear import PackedLinear
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint

_log = logging.getLogger(__name__)


def load_weight_only(
    model: LanguageModel, folder: Path, packed_max_rows: int, kept: Mapping[str, str]
) -> tuple[LanguageModel, str]:
    """`model.module` with the checkpoint of `folder` *in place*, and the kernels it now uses.

    Args:
        folder: a checkpoint of the GPTQ or AWQ format; already checked to be whole.
        packed_max_rows: rows up to which the packed kernel multiplies.
        kept: linear layers that stay as they are, with the reason.

    Raises:
        DataError: a name or a shape does not belong to this model.
    """
    if model.module.device.type == "cuda":
        return load_on_gpu(model, folder)
    module = model.module
    checkpoint = read_quantized_checkpoint(folder)
    bits: Counter[int] = Counter()
    for name, weight in checkpoint.layers:
        linear = _submodule(module, name)
        shape, expected = tuple(weight.q.shape), tuple(weight_of(linear).shape)
        if shape != expected:
            raise DataError(f"{name}: shape: got {shape}; expected {expected}")
        packed = PackedLinear(weight, linear.bias, module.dtype, packed_max_rows)
        module.set_submodule(name, packed)
        bits[weight.bits] += 1
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in checkpoint.others:
            # A bias of a replaced layer is its buffer now; everything else is where it was.
            if name not in own or own[name].shape != tensor.shape:
                raise DataError(f"{name}: does not belong to {type(module).__name__}")
            own[name].copy_(tensor)
    return model, _describe(bits, packed_max_rows, model.dtype, kept)


def _submodule(module: nn.Module, name: str) -> nn.Linear | Conv1D:
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        raise DataError(f"{name}: no such layer in {type(module).__name__}") from error
    if not isinstance(layer, nn.Linear | Conv1D):
        raise DataError(f"{name}: got quantized weights for a {type(layer).__name__}")
    return layer


def _describe(bits: Counter[int], packed_max_rows: int, dtype: str, kept: Mapping[str, str]) -> str:
    counted = ", ".join(f"{count} layers of {b} bits" for b, count in sorted(bits.items()))
    problem = packed_kernels.problem()
    if problem is None:
        product = "float32" if native_precision() == "fp32" else dtype
        kernel = (
            f"packed_kernels.multiply (float32) for 1-{packed_max_rows} rows, "
            f"packed_kernels.dequantize tiles + aten::mm ({product}) for more"
        )
    else:
        kernel = f"SLOW: unpacked by aten operators + aten::linear ({dtype}), because {problem}"
        _log.warning("quantized layers are slow here: %s", problem)
    return f"{kernel}; {counted}{describe_kept(kept, dtype)}"
