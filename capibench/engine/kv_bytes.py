"""What a token of context costs in memory: counted from the storage of a real cache.

A formula over the model's configuration would miss scales, alignment and layers of another kind
(METHOD: sizes come from bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from capibench.engine.decoding import CachedBatch, KvCache
from capibench.engine.kv_int8 import Int8Layer, Int8States


@dataclass(frozen=True, slots=True)
class KvBytes:
    """Bytes per row and position, all layers together."""

    held: int  # keys, values and scales, as long as the row is in the batch
    native: int  # what the cache in the model's precision would hold
    transient: int  # widened copy of the largest int8 layer, while attention reads it


@torch.inference_mode()
def count_kv_bytes(module: PreTrainedModel, kv_cache: KvCache) -> KvBytes:
    """Bytes of one position, from caches of one position that `module` has filled."""
    native = _filled(module, "native")
    held = native if kv_cache == "native" else _filled(module, kv_cache)
    widened = (
        layer_bytes(exact)
        for exact, layer in zip(native.layers, held.layers, strict=True)
        if isinstance(layer, Int8Layer)
    )
    return KvBytes(cache_bytes(held), cache_bytes(native), max(widened, default=0))


def _filled(module: PreTrainedModel, kv_cache: KvCache) -> DynamicCache:
    batch = CachedBatch(module, [[0]], 0, kv_cache)
    batch.prefill()
    return batch.cache


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of the storage behind all keys, values and scales of `cache`, reserved ones too."""
    return sum(layer_bytes(layer) for layer in cache.layers)


def layer_bytes(layer: CacheLayerMixin) -> int:
    """The same of one layer; views of the same storage count once."""
    storages = {}
    for tensor in _states(layer):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _states(holder: object) -> Iterator[Tensor]:
    """Tensors with a row, head, position and channel axis (not a layer's own constants)."""
    for value in vars(holder).values():
        if isinstance(value, Int8States):
            yield from _states(value)
        elif isinstance(value, Tensor) and value.ndim == 4:
            yield value
