"""The seam of quantization: a model in, the same model with cheaper weights out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capibench.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """The model to serve and what quantizing it cost and saved, all of it counted or timed."""

    model: LanguageModel
    bytes_before: int  # parameters and buffers in memory, tied storage counted once
    bytes_after: int  # the same count, scales and zero points included
    disk_bytes_after: int | None  # of the saved artifact; None where nothing was saved
    seconds: float  # quantizing, or loading a kept artifact (`reused`)
    reused: bool
    kernel: str  # what really multiplies, e.g. "aten::_weight_int8pack_mm"


class Quantization(Protocol):
    """Built from yaml without doing anything."""

    def params(self) -> dict[str, int | float | str | bool | None]:
        """Everything that changes the result; part of the artifact key."""

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write the quantized weights into the empty `folder` (called once per artifact)."""

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model` with the weights from `folder`, and the kernel that multiplies them."""
