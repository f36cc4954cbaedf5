"""A loaded language model and what a run must record about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """Weights in memory, their tokenizer and their identity."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str  # hash of weights and precision; part of artifact and cache keys
    dtype: str  # "bfloat16" or "float32": of weights and activations
    meaningful: bool  # False for random weights: no quality metric is computed from them

    def changed(self, params: Mapping[str, object]) -> LanguageModel:
        """The same model under another identity, after its module was changed as `params` say."""
        identity = f"{self.fingerprint} {sorted(params.items())}".encode()
        fingerprint = hashlib.blake2b(identity, digest_size=16).hexdigest()
        return replace(self, fingerprint=fingerprint)


class ModelSource(Protocol):
    """Built from yaml without doing anything; `load()` reads or makes the weights."""

    meaningful: bool  # False for random weights (class attribute)

    def source_key(self) -> dict[str, Any]:
        """What identifies the weights without loading them; JSON-able, part of artifact keys."""

    def load(self) -> LanguageModel:
        """Load on CPU or GPU; its time is a set-up cost."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone, for a process that counts tokens while others hold the weights."""
