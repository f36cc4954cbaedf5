"""Sequences of equal length from the calibration texts: what calibrated methods read.

Texts are joined by blank lines and cut without regard to their borders, as GPTQ's own code does
with C4 and WikiText (arXiv 2210.17323, section 4), so that no sequence is padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel

_SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class CalibrationTokens:
    """Token ids int64 [sequences, tokens] and the seed that chose them."""

    ids: Tensor
    seed: int

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records of them; JSON-able."""
        digest = hashlib.blake2b(self.ids.numpy().astype("<i8").tobytes(), digest_size=16)
        num_samples, sequence_tokens = self.ids.shape
        return {
            "num_samples": num_samples,
            "sequence_tokens": sequence_tokens,
            "seed": self.seed,
            "blake2b": digest.hexdigest(),
        }


@dataclass
class CalibrationSettings:
    """How much of the calibration texts a method reads, and which part; a method's dataclass
    begins with these fields."""

    num_samples: int
    sequence_tokens: int
    seed: int

    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("sequence_tokens", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least {least}")

    def calibration_params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "num_samples": self.num_samples,
            "sequence_tokens": self.sequence_tokens,
            "seed": self.seed,
        }

    def draw(self, model: LanguageModel, texts: Sequence[str]) -> CalibrationTokens:
        """ConfigError: see `choose_tokens`."""
        return choose_tokens(model, texts, self.num_samples, self.sequence_tokens, self.seed)


def choose_tokens(
    model: LanguageModel, texts: Sequence[str], num_samples: int, sequence_tokens: int, seed: int
) -> CalibrationTokens:
    """`num_samples` of the texts' sequences of `sequence_tokens` tokens, drawn by `seed`.

    Raises:
        ConfigError: the texts are too short for that, or the model takes no sequence so long.
    """
    longest = getattr(model.module.config, "max_position_embeddings", None)
    if longest is not None and sequence_tokens > longest:
        raise ConfigError(
            "quantization.sequence_tokens",
            f"got {sequence_tokens}; expected at most the model's {longest} positions",
        )
    text = _SEPARATOR.join(texts)
    # Longer than the model takes on purpose: it is cut below.
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    found = len(ids) // sequence_tokens
    if found < num_samples:
        raise ConfigError(
            "quantization.num_samples",
            f"got {num_samples} of {sequence_tokens} tokens; expected at most {found}, what "
            f"the {len(texts)} calibration texts ({len(ids)} tokens) hold, or more text",
        )
    whole = torch.tensor(ids[: found * sequence_tokens], dtype=torch.int64)
    drawn = torch.randperm(found, generator=torch.Generator().manual_seed(seed))[:num_samples]
    return CalibrationTokens(whole.reshape(found, sequence_tokens)[drawn].contiguous(), seed)
