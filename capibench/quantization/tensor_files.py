"""Tensors in the files that Transformers looks for: written and read one at a time.

A file for every gigabyte, so that neither side needs the whole model in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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

    def add_rest(self, state: Mapping[str, Tensor], but: set[str]) -> None:
        """All of `state` except `but`; tied weights are stored once, under their first name."""
        seen: set[int] = set()
        for name, tensor in state.items():
            if name in but or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            self.add({name: tensor})

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
