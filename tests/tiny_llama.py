"""A Llama small enough for every test: random weights, byte-level tokenizer, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capibench.model.language_model import LanguageModel
from capibench.model.pretrained import load_folder

NUM_POSITIONS = 96


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and a few special ones: 260 tokens."""
    specials = ["<|pad|>", "<|question|>", "<|answer|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>")


def save_tiny(
    folder: Path,
    *,
    ffn_size: int = 192,
    seed: int = 0,
    tied: bool = True,
    num_positions: int = NUM_POSITIONS,
) -> Path:
    """Write model and tokenizer into `folder`, fp32."""
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=2,
        intermediate_size=ffn_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        max_position_embeddings=num_positions,
        tie_word_embeddings=tied,
        # Large enough that the most probable token is clear and depends on the context.
        initializer_range=0.15,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load_tiny(folder: Path, precision: str = "fp32") -> LanguageModel:
    return load_folder(folder, precision, "model.path")
