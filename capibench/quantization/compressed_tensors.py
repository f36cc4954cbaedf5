"""int8 weights with int8 activations on disk, as Transformers and vLLM load them (W8A8).

The layout is the one of the compressed-tensors package, format `int-quantized`: beside each int8
`weight` [out, in] stands `weight_scale` [out, 1], and where activations are calibrated
`input_scale` [1] and `input_zero_point` int8 [1]; `quantization_config` in config.json says which
layers are so. Everything else is stored in 16 bits. The package itself is not
needed. GPT-2's Conv1D layers are written as the linear layers that they are, which only CapiBench
reads back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel
from capibench.quantization.int8_activations import ActivationRange
from capibench.quantization.layers import weight_of
from capibench.quantization.tensor_files import stored_dtype, untied

WEIGHTS = "model.safetensors"
# Names that a reader looks for beside `<layer>.weight`.
WEIGHT_SCALE = "weight_scale"
INPUT_SCALE = "input_scale"
INPUT_ZERO_POINT = "input_zero_point"
_LARGEST = 127


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `q` [out, in] and `s` [out] in the dtype of `weight`, so that `q · s ≈ weight`.

    Symmetric round-to-nearest per output channel. The scale is rounded *up* to its stored dtype
    before the weights are divided by it, so that every weight is within half a step.
    """
    peaks = weight.float().abs().amax(dim=1)
    scales = (peaks / _LARGEST).to(weight.dtype)
    too_small = scales.float() * _LARGEST < peaks
    scales = torch.where(too_small, torch.nextafter(scales, torch.ones_like(scales)), scales)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    q = (weight.float() / scales.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return q.to(torch.int8), scales


def write(
    folder: Path,
    model: LanguageModel,
    chosen: Mapping[str, nn.Linear | Conv1D],
    kept: Sequence[str],
    ranges: Mapping[str, ActivationRange] | None,
) -> None:
    """Write a whole checkpoint into `folder`: weights, configuration and tokenizer.

    Args:
        chosen: layers to quantize, by name.
        kept: names of the linear layers that stay as they are.
        ranges: of each chosen layer's calibrated activations; None: every token has its own
            scale, found when it is served.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in chosen.items():
        weight = weight_of(layer).cpu()
        q, scales = quantize_channels(weight)
        tensors |= {f"{name}.weight": q.contiguous(), f"{name}.{WEIGHT_SCALE}": scales[:, None]}
        if ranges is not None:
            stored = ranges[name]
            tensors[f"{name}.{INPUT_SCALE}"] = torch.tensor([stored.scale], dtype=weight.dtype)
            tensors[f"{name}.{INPUT_ZERO_POINT}"] = torch.tensor(
                [stored.zero_point], dtype=torch.int8
            )
    dtype = stored_dtype(model.module)
    for name, tensor in untied(model.module):
        if name not in tensors:
            kept_exact = not tensor.is_floating_point()
            tensors[name] = (tensor if kept_exact else tensor.to(dtype)).cpu().contiguous()
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    model.tokenizer.save_pretrained(str(folder))
    config = model.module.config.to_dict() | {
        "architectures": [type(model.module).__name__],
        "dtype": model.dtype,
        "quantization_config": _quantization_config(kept, dynamic=ranges is None),
    }
    if "lm_head" in chosen:
        config["tie_word_embeddings"] = False  # the head has integers of its own now
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _quantization_config(kept: Sequence[str], dynamic: bool) -> dict[str, Any]:
    int8 = {"num_bits": 8, "type": "int", "group_size": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": int8 | {"symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": int8
                | {
                    "symmetric": dynamic,
                    "strategy": "token" if dynamic else "tensor",
                    "dynamic": dynamic,
                },
                "output_activations": None,
            }
        },
        "ignore": list(kept),
        "kv_cache_scheme": None,
    }


def load_into(
    module: nn.Module,
    folder: Path,
    names: Sequence[str],
    replacement: Callable[[Tensor, Tensor, Tensor | None, ActivationRange | None], nn.Module],
) -> None:
    """Replace the layers `names` of `module` in place, and take over everything else.

    Args:
        replacement: makes a layer of int8 `q` [out, in], scales [out], its bias and, where it is
            stored, the range of its activations.

    Raises:
        DataError: the weights are not readable or lack a layer.
    """
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    own = module.state_dict()
    try:
        for name in names:
            q = tensors.pop(f"{name}.weight")
            device = own[f"{name}.weight"].device
            bias = tensors.pop(f"{name}.bias", None)
            stored = None
            if f"{name}.{INPUT_SCALE}" in tensors:
                stored = ActivationRange(
                    scale=float(tensors.pop(f"{name}.{INPUT_SCALE}")),
                    zero_point=int(tensors.pop(f"{name}.{INPUT_ZERO_POINT}")),
                )
            # Copied: what was read is a view of the file, which must not stay mapped as a whole.
            layer = replacement(
                q.to(device, copy=True),
                tensors.pop(f"{name}.{WEIGHT_SCALE}")[:, 0].to(device, copy=True),
                None if bias is None else bias.to(device, copy=True),
                stored,
            )
            module.set_submodule(name, layer)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
    except KeyError as error:
        raise DataError(f"{path}: has no {error}, or the model has not") from error
