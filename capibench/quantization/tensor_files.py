"""Tensors in the files that Transformers looks for: written and read one at a time.

A file for every gigabyte, so that neither side needs the whole model in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from capibench.errors import DataError

SHARD_BYTES = 1 << 30
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Safetensors files of about a gigabyte each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._waiting[name] = tensor.detach().cpu().contiguous()
            self._bytes += tensor.nbytes
        if self._bytes >= SHARD_BYTES:
            self._flush()

    def add_rest(self, module: nn.Module, but: set[str]) -> None:
        """What is not quantized, all of `module` except `but`, in 16 bits (`stored_dtype`)."""
        dtype = stored_dtype(module)
        for name, tensor in untied(module):
            if name not in but:
                self.add({name: tensor.to(dtype) if tensor.is_floating_point() else tensor})

    def close(self) -> None:
        """Write what waits; one file is `model.safetensors`, several get an index."""
        if self._waiting:
            self._flush()
        if len(self._shards) == 1:
            self._path(0).rename(self._folder / _SINGLE)
            return
        total = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{total:05d}.safetensors"
            self._path(number).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        path = self._folder / _INDEX
        path.write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        save_file(self._waiting, str(self._path(len(self._shards))), metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._total_bytes += self._bytes
        self._waiting, self._bytes = {}, 0


def untied(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and values of all that `module` stores; tied weights once, under their first name."""
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def stored_dtype(module: nn.Module) -> torch.dtype:
    """How weights that are not quantized are stored beside those that are: bfloat16 where that
    changes nothing (they were trained or shipped in it) or float16 cannot hold a number of them,
    else float16, which is closer."""
    exact = all(bool((p == p.to(torch.bfloat16)).all()) for p in module.parameters())
    most = torch.finfo(torch.float16).max
    held = all(bool((p.abs() <= most).all()) for p in module.parameters())
    return torch.bfloat16 if exact or not held else torch.float16


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and values of every tensor of the checkpoint in `folder`, one at a time.

    Raises:
        DataError: a file is missing or not readable.
    """
    for path in _files(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not readable: {error}") from error


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _SINGLE]
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(weight_map.values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{index}: not readable as an index of tensors: {error}") from error
