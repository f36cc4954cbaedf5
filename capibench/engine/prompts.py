"""Prompts as the tokens of a model, refused where the model has no room for them.

Needs the tokenizer and the configuration only, so that a process without weights can refuse too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capibench.engine.engine import GenerationRequest
from capibench.errors import RequestFailed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids, at least one.

    Raises:
        RequestFailed: the prompt has none.
    """
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise RequestFailed("the prompt has no tokens; expected at least one")
    return ids


def count_positions(config: PretrainedConfig) -> int | None:
    """How many tokens the model has room for; None: the model names no bound."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return positions


def check_room(num_prompt_tokens: int, num_new_tokens: int, num_positions: int | None) -> None:
    """
    Raises:
        RequestFailed: prompt and new tokens together exceed the model's positions.
    """
    if num_positions is not None and num_prompt_tokens + num_new_tokens > num_positions:
        raise RequestFailed(
            f"prompt of {num_prompt_tokens} tokens plus {num_new_tokens} new ones exceeds the "
            f"model's {num_positions} positions; expected a shorter prompt (prompt.top_k, "
            "prompt.passage_chars) or fewer new tokens"
        )


def encode_request(
    tokenizer: PreTrainedTokenizerBase, request: GenerationRequest, num_positions: int | None
) -> list[int]:
    """Token ids of a request that can be served.

    Raises:
        RequestFailed: it cannot, and why.
    """
    ids = encode_prompt(tokenizer, request.prompt)
    if request.max_new_tokens < 1:
        raise RequestFailed(f"max_new_tokens is {request.max_new_tokens}; expected at least 1")
    check_room(len(ids), request.max_new_tokens, num_positions)
    return ids
