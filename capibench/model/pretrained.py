"""Reads a folder of weights and tokenizer: what the shipped model and a user's own share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils.logging import disable_progress_bar

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import Precision, native_device, torch_dtype
from capibench.model.widened_linear import widen_products

# Any one of them makes a folder one that a tokenizer can be read from.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
# Says nothing about what the model computes.
_IRRELEVANT_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
_CHUNK_BYTES = 1 << 20


def load_folder(folder: Path, precision: Precision, key: str) -> LanguageModel:
    """Model and tokenizer of `folder`, ready for inference.

    Raises:
        ConfigError: under `key`, when the folder holds no causal language model or no tokenizer.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(
            key, f"got {str(folder)!r}, which has no config.json; expected a saved causal model"
        )
    tokenizer = load_tokenizer(folder, key)
    dtype = torch_dtype(precision)
    disable_progress_bar()  # standard error shows the run's own progress
    try:
        module = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            key, f"cannot load a causal model from {str(folder)!r}: {error}"
        ) from error
    return LanguageModel(
        module=ready(module),
        tokenizer=tokenizer,
        fingerprint=fingerprint(module, tokenizer),
        dtype=str(dtype).removeprefix("torch."),
        meaningful=True,
    )


def load_tokenizer(folder: Path, key: str) -> Tokenizer:
    """The tokenizer of `folder`; a ConfigError under `key` when there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(
            key,
            f"{str(folder)!r} has no tokenizer; expected one of {', '.join(TOKENIZER_FILES)} in it",
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(key, f"cannot load the tokenizer of {str(folder)!r}: {error}") from error


def ready(module: PreTrainedModel) -> PreTrainedModel:
    """`module` on the device of this machine, for inference only."""
    head = module.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_without_gaps)
    module.to(native_device()).eval().requires_grad_(False)
    widen_products(module)
    return module


def _without_gaps(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hidden states of the last positions are a view with gaps, for which PyTorch's linear
    turns to a batched product that copies the whole head once per row: most of a short prefill.
    (`contiguous()` would not do: it leaves the strides of a single row as they are.)"""
    return tuple(argument.clone(memory_format=torch.contiguous_format) for argument in args)


def fingerprint(module: PreTrainedModel, tokenizer: Tokenizer) -> str:
    """blake2b over architecture, vocabulary and every weight in the precision that is served."""
    digest = hashlib.blake2b(digest_size=16)
    config = {k: v for k, v in module.config.to_dict().items() if k not in _IRRELEVANT_CONFIG}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(module.named_parameters()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy())
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """blake2b over names and contents of the files that a model is loaded from, not loading it."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".safetensors", ".model", ".txt"}:
            continue
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def source_key(folder: Path, precision: Precision) -> dict[str, Any]:
    """What identifies the weights before they are loaded; part of artifact keys."""
    return {"weights": hash_folder(folder), "dtype": str(torch_dtype(precision))}
