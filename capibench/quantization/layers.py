"""Which layers of a model a method may quantize, and why the others stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capibench.errors import ConfigError

_log = logging.getLogger(__name__)
SKIPPED = "skip_modules"
HEAD = "lm_head"  # from hidden states to tokens


def choose_linears(
    module: nn.Module,
    skip_modules: Sequence[str],
    group_size: int = 0,
    in_multiple: int = 1,
    out_multiple: int = 1,
) -> tuple[dict[str, nn.Linear | Conv1D], dict[str, str]]:
    """Layers to quantize by name, and those that stay with the reason.

    Args:
        skip_modules: names, or last parts of names, of layers that keep their precision.
        group_size: inputs that share a scale; 0: all inputs of a layer.
        in_multiple, out_multiple: a format or a kernel needs in_features and out_features to be
            multiples of them; a layer of another size stays, with a warning.

    Raises:
        ConfigError: a layer's in_features is no multiple of `group_size`, a name to skip is no
            layer's (`HEAD` may be missing: not every model has one), a weight is NaN or infinite,
            or nothing is left.
    """
    linears = [name for name, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    known = {*linears, *(name.rpartition(".")[2] for name in linears), HEAD}
    for name in skip_modules:
        if name not in known:
            parts = sorted(part for part in known if "." not in part)
            raise ConfigError(
                "quantization.skip_modules",
                f"got {name!r}; expected names of layers, or their last parts: {', '.join(parts)}",
            )
    chosen: dict[str, nn.Linear | Conv1D] = {}
    kept: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear | Conv1D):
            continue
        num_out, num_in = weight_of(layer).shape
        if name in skip_modules or name.rpartition(".")[2] in skip_modules:
            kept[name] = SKIPPED
        elif group_size and num_in % group_size:
            raise ConfigError(
                "quantization.group_size",
                f"got {group_size}; expected a divisor of in_features={num_in} of {name} "
                "(or 0: one group per output channel; or name the layer in skip_modules)",
            )
        elif num_in % in_multiple:
            kept[name] = f"in_features={num_in} is no multiple of {in_multiple}"
        elif num_out % out_multiple:
            kept[name] = f"out_features={num_out} is no multiple of {out_multiple}"
        elif not bool(weight_of(layer).isfinite().all()):
            raise ConfigError("model", f"got NaN or infinity in {name}; expected finite weights")
        else:
            chosen[name] = layer
    for name, reason in kept.items():
        if reason != SKIPPED:
            _log.warning("%s is not quantized: %s", name, reason)
    if not chosen:
        raise ConfigError(
            "quantization.skip_modules",
            f"got {list(skip_modules)}, which leaves no linear layer of "
            f"{type(module).__name__} to quantize; expected at least one",
        )
    return chosen, kept


def weight_of(layer: nn.Linear | Conv1D) -> Tensor:
    """[out, in]; GPT-2's Conv1D is a linear layer that holds its weight transposed."""
    weight: Tensor = layer.weight.detach()
    return weight if isinstance(layer, nn.Linear) else weight.T


def describe_kept(kept: Mapping[str, str], dtype: str) -> str:
    """ "; kept in bfloat16: lm_head (skip_modules)" or nothing."""
    if not kept:
        return ""
    return f"; kept in {dtype}: " + ", ".join(f"{name} ({why})" for name, why in kept.items())
