"""Greedy decoding of a batch, step by step, with the time of every row's first and last token.

Transformers' own `generate` gives no token times, keeps finished rows in the batch and cannot end
rows at lengths of their own. This loop does, on the same model code. Two things make a step cheap:
keys and values are written into memory reserved at the start (Transformers' cache copies all of
it for every token), and a finished row leaves batch and cache at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from capibench.engine.kv_int8 import Int8Layer
from capibench.errors import ConfigError

KvCache = Literal["native", "int8"]  # how keys and values of past positions are kept


class ReservedLayer(DynamicLayer):  # type: ignore[misc]  # its base has no types
    """Keys and values of one layer [rows, heads, positions, head size], in memory for all the
    positions that the batch can reach."""

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self._num_positions = num_positions
        self._used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys = self._reserve(key_states)
        self._values = self._reserve(value_states)
        self.is_initialized = True

    def _reserve(self, states: Tensor) -> Tensor:
        rows, heads, _, size = states.shape
        return states.new_empty((rows, heads, self._num_positions, size))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append the new positions; return all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._used + key_states.shape[-2]
        self._keys[:, :, self._used : end] = key_states
        self._values[:, :, self._used : end] = value_states
        self._used = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._used

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`."""
        self._keys, self._values = self._keys[indices], self._values[indices]
        self.keys, self.values = self._keys[:, :, : self._used], self._values[:, :, : self._used]


def unsupported_layers(config: PretrainedConfig) -> set[str]:
    """Kinds of cache layers (by class name) whose rows cannot be padded and dropped."""
    layers = DynamicCache(config=config).layers
    return {type(layer).__name__ for layer in layers if not isinstance(layer, DynamicLayer)}


def reserve_cache(
    config: PretrainedConfig, num_positions: int, kv_cache: KvCache = "native"
) -> DynamicCache:
    """An empty cache for `num_positions`; layers with a sliding window keep their own kind, in
    the model's precision."""
    reserved = ReservedLayer if kv_cache == "native" else Int8Layer
    cache = DynamicCache(config=config)
    cache.layers = [
        reserved(num_positions) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def count_int8_layers(config: PretrainedConfig) -> tuple[int, int]:
    """Layers whose past the int8 cache holds, of how many; the others keep their own kind.

    Raises:
        ConfigError: it would hold none, so that the choice would change nothing.
    """
    layers = reserve_cache(config, 1, "int8").layers
    held = sum(isinstance(layer, Int8Layer) for layer in layers)
    if not held:
        raise ConfigError(
            "engine.kv_cache",
            "got 'int8', but every layer of the model keeps its past in a way of its own (a "
            "sliding window, say), which stays in the model's precision; expected native",
        )
    return held, len(layers)


class CachedBatch:
    """Rows that advance together, one token each per step, over a cache of their past.

    Prompts are padded on the left, so that all rows end at the same position; padding is masked
    and does not count as a position.

    Args:
        module: decoder on any device.
        prompts: token ids, at least one per row.
        num_steps: calls of `step` that will follow the prefill at most.
        kv_cache: how the past is kept.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        num_steps: int,
        kv_cache: KvCache,
    ) -> None:
        device = module.device
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        self._module = module
        # Any token does where the mask hides it.
        self._prompts = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
            device=device,
        )
        self._offsets = torch.tensor(padding, device=device)[:, None]
        self._everywhere = torch.arange(longest + num_steps, device=device)[None, :]
        self._seen = (self._everywhere >= self._offsets).long() if any(padding) else None
        self._length = longest
        self.cache = reserve_cache(module.config, longest + num_steps, kv_cache)

    def prefill(self) -> Tensor:
        """Read the prompts; logits [rows, vocabulary] for the token after each."""
        positions = (self._everywhere[:, : self._length] - self._offsets).clamp_(min=0)
        return self._forward(self._prompts, positions)

    def step(self, tokens: Tensor) -> Tensor:
        """Append `tokens` [rows, 1]; logits [rows, vocabulary] for the token after each."""
        positions = self._length - self._offsets
        self._length += 1
        return self._forward(tokens, positions)

    def keep(self, indices: Tensor) -> None:
        """Drop all rows but `indices` from the batch and its cache."""
        self._offsets = self._offsets[indices]
        self._seen = None if self._seen is None else self._seen[indices]
        for layer in self.cache.layers:
            layer.batch_select_indices(indices)

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self._module(
            input_ids=tokens,
            attention_mask=None if self._seen is None else self._seen[:, : self._length],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]


@dataclass(slots=True)
class Decoded:
    """New tokens of one row and when the first and the last of them existed."""

    tokens: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    last_token_s: float = 0.0


@torch.inference_mode()
def decode(
    module: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_new_tokens: Sequence[int],
    now: Callable[[], float],
    kv_cache: KvCache = "native",
) -> list[Decoded]:
    """The most probable continuation of every prompt, exactly `num_new_tokens[i]` tokens long.

    End-of-sequence is a token like any other. In fp32 a row has the same tokens alone and in any
    batch; with the int8 cache too, as its scales look at one row only, except where arithmetic of
    another batch size moves a value across the border between two integers.

    Args:
        module: decoder on any device.
        prompts: token ids, at least one per row.
        num_new_tokens: at least 1 per row.
        now: clock, read after the tokens of a step have reached the host.
        kv_cache: how keys and values of past positions are kept.
    """
    # The last token is never fed back.
    batch = CachedBatch(module, prompts, max(num_new_tokens) - 1, kv_cache)
    rows = [Decoded() for _ in prompts]
    alive = list(range(len(prompts)))
    logits = batch.prefill()
    while True:
        # The same token as in bf16, which takes PyTorch's `argmax` four times as long.
        ids = logits.float().argmax(-1, keepdim=True)
        tokens = ids[:, 0].tolist()
        now_s = now()
        for row, token in zip(alive, tokens, strict=True):
            decoded = rows[row]
            if not decoded.tokens:
                decoded.first_token_s = now_s
            decoded.tokens.append(token)
            decoded.last_token_s = now_s
        keep = [i for i, r in enumerate(alive) if len(rows[r].tokens) < num_new_tokens[r]]
        if not keep:
            return rows
        if len(keep) < len(alive):
            alive = [alive[i] for i in keep]
            index = torch.tensor(keep, device=module.device)
            ids = ids[index]
            batch.keep(index)
        logits = batch.step(ids)
