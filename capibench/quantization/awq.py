"""AWQ: input channels that carry large activations are scaled up before weights are rounded.

Lin et al., arXiv 2306.00978: the scale of each input channel, a power of its mean activation, is
searched on calibration texts so that the layer's output changes least, and divided out of the
layer before (section 3.2); then the range at which weights are clipped is searched likewise.
Nothing is trained and no error is compensated, so that it clings less to the texts than GPTQ. It
changes the norms too, which is why they are loaded with the checkpoint. Quantized by gptqmodel
(`gptqmodel_quantizer`), multiplied by the same kernels as every other weight-only method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from capibench.model.language_model import LanguageModel
from capibench.quantization.gptqmodel_quantizer import GptqmodelSettings, quantize_with_gptqmodel
from capibench.quantization.packing import AWQ_BITS


@dataclass
class Awq(GptqmodelSettings):
    """4-bit weights, in the GEMM layout, of all linear layers of the decoder but `skip_modules`."""

    method: ClassVar[str] = "awq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits != AWQ_BITS:
            raise ValueError(
                f"bits: got {self.bits}; expected {AWQ_BITS}: AWQ's layout holds no others "
                "(gptq takes 2, 3, 4 and 8)"
            )

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write an AWQ checkpoint, as Transformers and vLLM load it. `model` is not changed.

        Raises:
            ConfigError, MissingExtra, RunFailed: see `quantize_with_gptqmodel`.
        """
        quantize_with_gptqmodel(model, calibration, folder, self, gptq={})
