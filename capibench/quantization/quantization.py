"""The seam of quantization: a model in, the same model with cheaper weights out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from capibench.model.language_model import LanguageModel


class Quantization(Protocol):
    """Built from yaml without doing anything."""

    calibrated: bool  # True: `quantize` looks at calibration texts (class attribute)
    load_only: frozenset[str]  # names in `params` that the artifact does not depend on (likewise)

    def params(self) -> dict[str, int | float | str | bool | None]:
        """Everything that changes the result; all but `load_only` is part of the artifact key."""

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write the quantized weights into the empty `folder` (called once per artifact).

        `model` is not changed; `calibration` is empty where the method is not `calibrated`."""

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model` with the weights from `folder`, and the kernel that multiplies them."""


def artifact_params(quantization: Quantization) -> dict[str, int | float | str | bool | None]:
    """The settings that the written artifact depends on."""
    params = quantization.params()
    return {name: value for name, value in params.items() if name not in quantization.load_only}
