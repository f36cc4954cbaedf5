"""The baseline: the model as it was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from capibench.model.language_model import LanguageModel


@dataclass
class NoQuantization:
    """Changes nothing and writes nothing."""

    calibrated: ClassVar[bool] = False
    load_only: ClassVar[frozenset[str]] = frozenset()

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {"method": "none"}

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Nothing to write."""

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model` itself."""
        from capibench.model.widened_linear import linear_kernels  # imports PyTorch

        return model, linear_kernels(model.module, model.dtype)
