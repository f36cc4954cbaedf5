"""A Llama of any size with random weights: real speed and memory where no weights are at hand.

Matrix products cost the same whatever the numbers are, so a shape is enough to measure kernels,
caches and batching at a size that is not shipped. What it says is noise: `meaningful` is False,
and no quality metric is computed from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.model.packaged import packaged_folder
from capibench.model.precision import Precision, torch_dtype
from capibench.model.pretrained import load_tokenizer, ready

_TOKENIZER_OF = "nano"
_STD = 0.02  # Llama's own initializer_range


@dataclass
class RandomShape:
    """Llama architecture (untied head) of the given sizes, with the shipped model's tokenizer."""

    hidden_size: int
    num_layers: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_positions: int
    precision: Precision
    seed: int

    meaningful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("precision", "seed") and value < 1:
                raise ValueError(f"{name}: got {value}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}; expected at least 0")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads: got {self.num_kv_heads}; expected a divisor of "
                f"num_heads={self.num_heads}"
            )
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"num_heads: got {self.num_heads}; expected hidden_size={self.hidden_size} "
                "to be an even multiple of it"
            )

    def source_key(self) -> dict[str, Any]:
        """The recipe: hashing gigabytes of seeded noise would say no more. The random stream may
        change between versions of torch, so that belongs to it."""
        recipe = {**asdict(self), "dtype": str(torch_dtype(self.precision))}
        return {"shape": recipe, "torch": str(torch.__version__)}

    def load(self) -> LanguageModel:
        tokenizer = self.load_tokenizer()
        if len(tokenizer) > self.vocab_size:
            raise ConfigError(
                "model.vocab_size",
                f"got {self.vocab_size}; expected at least {len(tokenizer)}, the tokens of the "
                f"{_TOKENIZER_OF} tokenizer",
            )
        recipe = json.dumps(self.source_key(), sort_keys=True).encode()
        return LanguageModel(
            module=self.build_module(),
            tokenizer=tokenizer,
            fingerprint=hashlib.blake2b(recipe, digest_size=16).hexdigest(),
            dtype=str(torch_dtype(self.precision)).removeprefix("torch."),
            meaningful=False,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(packaged_folder(_TOKENIZER_OF, "model"), "model")

    def build_module(self) -> LlamaForCausalLM:
        """The network, its weights drawn from the seed straight in the precision served
        (constructing it the usual way would draw them twice, in fp32)."""
        config = LlamaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            intermediate_size=self.ffn_size,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
        dtype = torch_dtype(self.precision)
        with torch.device("meta"):
            module = LlamaForCausalLM(config).to(dtype)
        module.to_empty(device="cpu")
        # Its tables are buffers that no checkpoint holds: computed, not drawn.
        module.model.rotary_emb = LlamaRotaryEmbedding(config)
        module.config.dtype = dtype
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.fill_(1.0)  # norms
                else:
                    parameter.normal_(0.0, _STD, generator=generator)
        return ready(module)
