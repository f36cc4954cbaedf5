"""One forward pass over rows that stand at different places: some decode, some read a prompt.

All layers but attention look at one token at a time, so the tokens of an iteration are simply laid
one after the other, [1, tokens], and every weight is read once for all of them, without padding.
Attention is the exception and is done per part: the decoding rows together over their slots, each
piece of a prompt over the prompt so far. (Orca, OSDI 2022, section 3.2, calls this selective
batching; pieces of prompts beside decoding rows are Sarathi's, arXiv 2308.16369.)

Transformers has a seam for this: an attention function is chosen by name and is handed what the
model is called with. Ours is `NAME`; called without packed rows it is Transformers' own sdpa, so
that a model under this name goes on answering everybody else as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from capibench.engine.slots import Slots

NAME = "capibench_packed"


class Attend(Protocol):
    """What a pass is handed in place of a cache."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """query [1, heads, tokens, size], key and value [1, key heads, tokens, size] →
        [1, tokens, heads, size]."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Attend | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    if packed is None:
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    assert isinstance(module.layer_idx, int)
    return packed.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def forward(
    module: PreTrainedModel,
    tokens: Sequence[int],
    positions: Sequence[int],
    wanted: Sequence[int],
    packed: Attend,
) -> Tensor:
    """Logits [len(wanted), vocabulary] for what follows the tokens with the indices `wanted`."""
    device = module.device
    logits: Tensor = module(
        input_ids=torch.tensor([list(tokens)], device=device),
        position_ids=torch.tensor([list(positions)], device=device),
        # A mask of four dimensions is passed on as it is: ours is made where it is needed.
        attention_mask=torch.empty((1, 1, 1, 1), device=device),
        use_cache=False,
        # 0: of all tokens
        logits_to_keep=0 if len(wanted) == len(tokens) else torch.tensor(wanted, device=device),
        packed=packed,
    ).logits
    return logits[0]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one prompt: positions `begin` to `end` of `states` [layers, 2, heads, positions,
    size], of which those before `begin` are written already."""

    states: Tensor
    begin: int
    end: int


class PackedRows:
    """The attention of one iteration: first one token of every row in `slots`, then `pieces`."""

    def __init__(self, slots: Slots, pieces: Sequence[Piece]) -> None:
        self._slots = slots
        self._pieces = pieces
        self._lengths: Tensor | None = None
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        if slots.lengths:
            self._places = slots.next_places()
            lengths = slots.lengths
            self._equal = min(lengths) == max(lengths)
            self._lengths = torch.tensor(lengths, device=slots.shape.device)[:, None]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        begin = 0
        parts = []
        if self._lengths is not None:
            begin = len(self._lengths)
            parts.append(
                self._decode(
                    layer, query[0, :, :begin], key[0, :, :begin], value[0, :, :begin], scaling,
                    window,
                )
            )  # fmt: skip
        for number, piece in enumerate(self._pieces):
            end = begin + piece.end - piece.begin
            parts.append(
                self._read(
                    layer, number, query[:, :, begin:end], key[:, :, begin:end],
                    value[:, :, begin:end], scaling, window,
                )
            )  # fmt: skip
            begin = end
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]

    def _decode(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """[heads, rows, size] → [rows, heads, size]. Heads that share a key stand where several
        queries of one head would, so that no key is copied for them."""
        keys, values = self._slots.append(layer, key, value, self._places)
        heads, rows, size = query.shape
        grouped = query.transpose(0, 1).view(rows, keys.shape[1], -1, size)
        seen = scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self._decode_mask(query.dtype, window), scale=scaling
        )
        return seen.reshape(rows, heads, size)

    def _decode_mask(self, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """[rows, 1, 1, longest]: 0 where a row has a position that it may see."""
        key = (-1, window)
        if key not in self._masks:
            lengths = self._lengths
            assert lengths is not None
            longest = self._places.longest
            hides_past = window is not None and longest > window
            if self._equal and not hides_past:
                self._masks[key] = None
            else:
                at = torch.arange(longest, device=lengths.device)
                seen = at < lengths
                if hides_past:
                    assert window is not None
                    seen &= at >= lengths - window
                self._masks[key] = _additive(seen, dtype)[:, None, None]
        return self._masks[key]

    def _read(
        self,
        layer: int,
        number: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """[1, heads, tokens, size] → [tokens, heads, size]."""
        piece = self._pieces[number]
        states = piece.states[layer]
        states[0, :, piece.begin : piece.end] = key[0]
        states[1, :, piece.begin : piece.end] = value[0]
        heads, tokens, size = query.shape[1:]
        groups = heads // key.shape[1]
        if piece.begin == 0 and (window is None or piece.end <= window):
            seen = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1
            )
        else:
            grouped = query.reshape(1, key.shape[1], groups * tokens, size)
            seen = scaled_dot_product_attention(
                grouped,
                states[None, 0, :, : piece.end],
                states[None, 1, :, : piece.end],
                attn_mask=self._piece_mask(number, groups, query.dtype, window),
                scale=scaling,
            ).reshape(1, heads, tokens, size)
        return seen[0].transpose(0, 1)

    def _piece_mask(
        self, number: int, groups: int, dtype: torch.dtype, window: int | None
    ) -> Tensor | None:
        """[groups · tokens, positions]: 0 where a token of the piece may look."""
        key = (number, window)
        if key not in self._masks:
            piece = self._pieces[number]
            device = piece.states.device
            own = torch.arange(piece.begin, piece.end, device=device)[:, None]
            at = torch.arange(piece.end, device=device)
            seen = at <= own
            if window is not None:
                seen &= at > own - window
            self._masks[key] = _additive(seen, dtype).repeat(groups, 1)
        return self._masks[key]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `seen`, else minus infinity; sdpa would otherwise convert it anew in every layer."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
        ~seen, float("-inf")
    )
