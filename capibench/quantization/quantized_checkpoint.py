"""Reads GPTQ and AWQ checkpoints, whoever wrote them: AutoGPTQ, AutoAWQ, gptqmodel or CapiBench.

One layer is in memory at a time, so that reading needs no more than the model that it fills. What
is not quantized is read too: AWQ folds its scales into norms and preceding layers, so that the
original ones would not fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from capibench.errors import DataError
from capibench.quantization.packing import unpack_awq, unpack_gptq
from capibench.quantization.quantized_weight import QuantizedWeight

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Where the settings stand, beside `quantization_config` in config.json.
_SETTINGS_FILES = ("quantize_config.json", "quant_config.json")
_PACKED = ("qweight", "qzeros", "scales", "g_idx")
# Tables that old checkpoints hold and current architectures compute.
_COMPUTED = ("rotary_emb.inv_freq", "attn.masked_bias")


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """An opened checkpoint; its iterators read the files anew each time they are asked for."""

    method: str  # "gptq" or "awq"
    bits: Mapping[str, int]  # of each quantized layer, by name
    _files: Mapping[str, Path]  # of each tensor
    _unpack: Callable[[Mapping[str, Tensor], int], QuantizedWeight]

    @property
    def layers(self) -> Iterator[tuple[str, QuantizedWeight]]:
        """Name and integers of each quantized layer, one at a time.

        Raises:
            DataError: a tensor is missing or its shape is wrong.
        """
        for name, bits in self.bits.items():
            tensors = {
                kind: self._read(f"{name}.{kind}")
                for kind in _PACKED
                if f"{name}.{kind}" in self._files
            }
            try:
                yield name, self._unpack(tensors, bits)
            except KeyError as error:
                raise DataError(f"{self._where(name)}: {name}: has no {error}") from error
            except ValueError as error:
                raise DataError(f"{self._where(name)}: {name}.{error}") from error

    @property
    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Name and values of everything that is not quantized, biases included."""
        packed = {f"{name}.{kind}" for name in self.bits for kind in _PACKED}
        for name in self._files:
            if name not in packed and not name.endswith(_COMPUTED):
                yield name, self._read(name)

    def _where(self, name: str) -> Path:
        return self._files[f"{name}.qweight"]

    def _read(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            with safe_open(str(path), framework="pt") as file:
                # Cloned: a view of the file would keep all of it mapped.
                tensor: Tensor = file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: {name}: not readable: {error}") from error
        return tensor


def read_quantized_checkpoint(folder: Path) -> QuantizedCheckpoint:
    """Open the checkpoint in `folder`.

    Raises:
        DataError: no settings, a format that is neither GPTQ's nor AWQ's GEMM layout, or weights
            that are missing or damaged.
    """
    path, settings = _settings(folder)
    method = settings.get("quant_method", "gptq")
    bits = settings.get("bits", settings.get("w_bit"))
    if not isinstance(bits, int):
        raise DataError(f"{path}: bits: got {bits!r}; expected a whole number")
    if method == "gptq":
        layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if layout not in ("gptq", "gptq_v2"):
            raise DataError(f"{path}: checkpoint_format: got {layout!r}; expected gptq or gptq_v2")
        plus_one = layout == "gptq"

        def unpack(t: Mapping[str, Tensor], bits: int) -> QuantizedWeight:
            return unpack_gptq(
                t["qweight"], t["qzeros"], t["scales"], t.get("g_idx"), bits,
                zeros_plus_one=plus_one,
            )  # fmt: skip

    elif method == "awq":
        layout = str(settings.get("version", settings.get("format", "gemm"))).lower()
        if layout != "gemm":
            raise DataError(f"{path}: version: got {layout!r}; expected gemm")

        def unpack(t: Mapping[str, Tensor], bits: int) -> QuantizedWeight:
            return unpack_awq(t["qweight"], t["qzeros"], t["scales"], bits)

    else:
        raise DataError(f"{path}: quant_method: got {method!r}; expected gptq or awq")
    files = _tensor_files(folder)
    names = tuple(
        sorted(name.removesuffix(".qweight") for name in files if name.endswith(".qweight"))
    )
    if not names:
        raise DataError(f"{folder}: no quantized layer in its weights; expected .qweight tensors")
    exceptions = settings.get("dynamic") or {}
    return QuantizedCheckpoint(
        method, {name: _bits_of(name, bits, exceptions) for name in names}, files, unpack
    )


def _bits_of(name: str, bits: int, exceptions: Mapping[str, Any]) -> int:
    """gptqmodel's `dynamic` table: the first pattern that matches the start of the name decides;
    `+:` before it (or nothing) overrides settings, `-:` leaves layers out."""
    for pattern, settings in exceptions.items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), name):
            return int(settings.get("bits", bits))
    return bits


def _settings(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    config = folder / "config.json"
    if config.is_file():
        found = _read_json(config).get("quantization_config")
        if isinstance(found, dict):
            return config, found
    for name in _SETTINGS_FILES:
        if (folder / name).is_file():
            return folder / name, _read_json(folder / name)
    raise DataError(
        f"{folder}: no quantization_config in config.json and no {' or '.join(_SETTINGS_FILES)}; "
        "expected a checkpoint of AutoGPTQ, AutoAWQ or gptqmodel"
    )


def _tensor_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor, in the order of their names."""
    if (folder / INDEX).is_file():
        names = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise DataError(f"{folder / INDEX}: weight_map: missing")
        paths = sorted({folder / str(file) for file in names.values()})
    else:
        # AutoGPTQ named the single file after bits and group size.
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) > 1:
            raise DataError(f"{folder}: {len(paths)} .safetensors files without {INDEX}")
    if not paths:
        raise DataError(f"{folder}: no .safetensors file; expected {WEIGHTS}")
    found: dict[str, Path] = {}
    for path in paths:
        if path.parent != folder:
            raise DataError(f"{folder / INDEX}: {path.name}: expected a file beside it")
        try:
            with safe_open(str(path), framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not readable: {error}") from error
    return dict(sorted(found.items()))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object")
    return document
