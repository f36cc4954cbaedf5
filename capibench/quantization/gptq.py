"""GPTQ: each weight rounded in turn, the error made good by those not yet rounded.

Frantar et al., arXiv 2210.17323: for a layer with inputs X, the columns of W are rounded one after
the other, and the change of the output is compensated in the remaining columns through the inverse
of the Hessian `H = 2XXᵀ + λI` (section 3, algorithm 1). It needs texts to take X from, and time:
about that of a few forward passes and one Cholesky factorization per layer. Quantized by gptqmodel
(`gptqmodel_quantizer`), multiplied by the same kernels as every other weight-only method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from capibench.model.language_model import LanguageModel
from capibench.quantization.gptqmodel_quantizer import GptqmodelSettings, quantize_with_gptqmodel


@dataclass
class Gptq(GptqmodelSettings):
    """All linear layers of the decoder but `skip_modules` on a grid of 2^bits points per group."""

    bits: Literal[2, 3, 4, 8]
    desc_act: bool
    act_group_aware: bool
    damp_percent: float
    mse: float

    method: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damp_percent < 1:
            raise ValueError(
                f"damp_percent: got {self.damp_percent}; expected more than 0, under 1"
            )
        if self.mse < 0:
            raise ValueError(f"mse: got {self.mse}; expected 0 (off) or the norm's exponent")
        if self.desc_act and self.act_group_aware:
            raise ValueError("act_group_aware: got true; expected false where desc_act is true")

    def params(self) -> dict[str, int | float | str | bool | None]:
        return super().params() | self._own()

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write a GPTQ checkpoint, as Transformers and vLLM load it. `model` is not changed.

        Raises:
            ConfigError, MissingExtra, RunFailed: see `quantize_with_gptqmodel`.
        """
        # Version 1 stores zero points less one: no room for a zero point of 0.
        layout = {"format": "gptq" if self.symmetric else "gptq_v2"}
        quantize_with_gptqmodel(model, calibration, folder, self, layout | self._own())

    def _own(self) -> dict[str, int | float | str | bool | None]:
        return {
            "desc_act": self.desc_act,
            "act_group_aware": self.act_group_aware,
            "damp_percent": self.damp_percent,
            "mse": self.mse,
        }
