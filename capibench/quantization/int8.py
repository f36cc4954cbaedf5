"""8-bit weights: half the bytes of bf16 to read per token, at hardly any loss of quality.

Symmetric round-to-nearest per output channel: `q = round(w / s)`, `s = max |w| / 127` over the
channel (the row of the weight matrix). Activations stay in the model's precision, so that no
calibration is needed.

Which kernel multiplies depends on the number of rows (batch times positions): PyTorch's packed
kernel reads int8 directly and wins while reading weights is what costs; it unpacks anew for every
few rows, so that from some row count on it is cheaper to turn the matrix into the model's
precision once and use the ordinary product.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel

# The packed kernel reads past the end of rows of other lengths: wrong numbers, then a crash.
IN_FEATURES_MULTIPLE = 16
WEIGHTS = "weights.safetensors"
MANIFEST = "int8.json"
_FORMAT = 1
_log = logging.getLogger(__name__)


class Int8Linear(nn.Module):
    """`y = (x qᵀ) · s + b` with int8 `q` [out, in] and one scale `s` [out] per output channel."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, scales: Tensor, bias: Tensor | None, packed_max_rows: int
    ) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.out_features = weight.shape[0]
        self.packed_max_rows = packed_max_rows
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] → [..., out], in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features)
        if rows.shape[0] <= self.packed_max_rows:
            y = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scales)
        else:
            # Whole numbers up to 127 are exact in bf16, so scaling the result is as good as
            # scaling the weights, and much cheaper.
            y = functional.linear(rows, self.weight.to(x.dtype)) * self.scales
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `q` [out, in] and `s` [out] in the dtype of `weight`, so that `q · s ≈ weight`.

    The scale is rounded to its stored dtype first and the weights are divided by what is stored:
    rounding it afterwards would shift a whole channel.
    """
    exact = weight.float()
    scales = (exact.abs().amax(dim=1) / 127).to(weight.dtype)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    q = (exact / scales.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return q, scales


@dataclass
class Int8:
    """int8 weights for all linear layers but `skip_modules` (names, or last parts of names)."""

    packed_max_rows: int
    skip_modules: list[str]

    def __post_init__(self) -> None:
        if self.packed_max_rows < 0:
            raise ValueError(f"packed_max_rows: got {self.packed_max_rows}; expected at least 0")

    def params(self) -> dict[str, int | float | str | bool | None]:
        values = asdict(self)
        return {
            "method": "int8",
            "packed_max_rows": values["packed_max_rows"],
            "skip_modules": ",".join(sorted(self.skip_modules)),
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write int8 weights, scales and everything that stays as it is. `model` is not changed."""
        chosen, kept = self._choose(model.module)
        for name, reason in kept.items():
            if reason != "skip_modules":
                _log.warning("int8: %s stays in %s: %s", name, model.dtype, reason)
        tensors: dict[str, Tensor] = {}
        for name, linear in chosen.items():
            q, scales = quantize_weight(linear.weight.detach().cpu())
            tensors |= {f"{name}.weight": q, f"{name}.scales": scales}
        seen: set[int] = set()  # tied weights are stored once, under their first name
        for name, tensor in model.module.state_dict().items():
            if name in tensors or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().cpu().contiguous()
        save_file(tensors, str(folder / WEIGHTS))
        manifest = {
            "format": _FORMAT,
            "weights": _hash(folder / WEIGHTS),
            "model": model.fingerprint,
            "quantized": sorted(chosen),
            "kept": kept,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by the int8 ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        manifest = _read_manifest(folder)
        if manifest["model"] != model.fingerprint:
            raise DataError(
                f"{folder / MANIFEST}: model: made from {manifest['model']}, "
                f"loaded for {model.fingerprint}; quantize this model anew"
            )
        tensors = _read_weights(folder / WEIGHTS, manifest["weights"])
        module = model.module
        device = module.device
        packed = device.type == "cpu" and model.dtype == "bfloat16"
        packed_max_rows = self.packed_max_rows if packed else 0
        # Cloned: what was read is a view of the file, which must not stay mapped as a whole.
        for name in manifest["quantized"]:
            linear = module.get_submodule(name)
            replacement = Int8Linear(
                tensors.pop(f"{name}.weight").to(device, copy=True),
                tensors.pop(f"{name}.scales").to(device, copy=True),
                tensors.pop(f"{name}.bias").to(device, copy=True)
                if linear.bias is not None
                else None,
                packed_max_rows,
            )
            module.set_submodule(name, replacement)
        own = module.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)
        fingerprint = hashlib.blake2b(
            f"{model.fingerprint} {self.params()}".encode(), digest_size=16
        ).hexdigest()
        kernel = _describe(packed_max_rows, model.dtype, manifest)
        return replace(model, fingerprint=fingerprint), kernel

    def _choose(self, module: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, str]]:
        """Layers to quantize, and those that stay with the reason."""
        chosen: dict[str, nn.Linear] = {}
        kept: dict[str, str] = {}
        for name, layer in module.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            if name in self.skip_modules or name.rpartition(".")[2] in self.skip_modules:
                kept[name] = "skip_modules"
            elif layer.in_features % IN_FEATURES_MULTIPLE:
                kept[name] = (
                    f"in_features={layer.in_features} is no multiple of {IN_FEATURES_MULTIPLE}"
                )
            else:
                chosen[name] = layer
        return chosen, kept


def _describe(packed_max_rows: int, dtype: str, manifest: dict[str, Any]) -> str:
    """What multiplies for which number of rows, and which layers are not quantized."""
    unpacked = f"int8 to {dtype} + aten::linear"
    if packed_max_rows > 0:
        kernel = f"aten::_weight_int8pack_mm for 1-{packed_max_rows} rows, {unpacked} for more"
    else:
        kernel = unpacked
    kernel += f"; {len(manifest['quantized'])} layers"
    if manifest["kept"]:
        kept = ", ".join(f"{name} ({reason})" for name, reason in manifest["kept"].items())
        kernel += f"; kept in {dtype}: {kept}"
    return kernel


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; the quantized model is incomplete") from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"{path}: format: expected {_FORMAT}")
    return manifest


def _read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: missing; the quantized model is incomplete")
    if _hash(path) != expected:
        raise DataError(f"{path}: damaged; its hash is not the one in {MANIFEST}")
    try:
        tensors: dict[str, Tensor] = load_file(str(path))
    except SafetensorError as error:
        raise DataError(f"{path}: not readable: {error}") from error
    return tensors
