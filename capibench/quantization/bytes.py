"""How large a model really is: storage counted, never a formula or a name (METHOD: sizes)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def resident_bytes(module: nn.Module) -> int:
    """Bytes of the storage behind all parameters and buffers, shared storage counted once, and of
    weights packed by a library, which a layer that holds them tells as `packed_bytes`."""
    storages = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    packed = sum(getattr(layer, "packed_bytes", 0) for layer in module.modules())
    return sum(storages.values()) + packed


def file_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
