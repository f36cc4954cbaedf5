"""int8 weights, and activations on one grid per layer that calibration text has fixed.

Nothing about a row is computed while it is served, which is what int8-only accelerators need. The
price is quality: one grid has to hold every token's outliers (Jacob et al., arXiv 1712.05877,
section 3; for language models LLM.int8(), arXiv 2208.07339, section 3). `dynamic` avoids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_device
from capibench.quantization.activation_ranges import RangeMethod, choose_range, observe
from capibench.quantization.calibration_tokens import CalibrationSettings
from capibench.quantization.compressed_tensors import write
from capibench.quantization.int8_activations import (
    IN_FEATURES_MULTIPLE,
    ActivationRange,
    Int8Product,
    Kernel,
    StaticInt8Linear,
    choose_kernel,
)
from capibench.quantization.int8_loading import load_int8
from capibench.quantization.layers import choose_linears
from capibench.quantization.sealed import seal

_METHOD = "static"


@dataclass
class StaticInt8(CalibrationSettings):
    """int8 weights and calibrated int8 activations for all linear layers but `skip_modules`."""

    kernel: Kernel
    range: RangeMethod
    percentile: float | None
    skip_modules: list[str]

    load_only: ClassVar[frozenset[str]] = frozenset({"kernel", "activation_bits"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.range == "percentile") != (self.percentile is not None):
            raise ValueError(
                f"percentile: got {self.percentile} with range={self.range}; "
                "expected a number with range=percentile, null with any other"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: got {self.percentile}; expected above 50, at most 100")

    def params(self) -> dict[str, int | float | str | bool | None]:
        kernel = choose_kernel(self.kernel, native_device())
        return {
            "method": _METHOD,
            "kernel": kernel.name,
            "activation_bits": kernel.bits,
            "range": self.range,
            "percentile": self.percentile,
            **self.calibration_params(),
            "skip_modules": ",".join(sorted(self.skip_modules)),
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write a checkpoint that Transformers and vLLM load. `model` is not changed.

        Raises:
            ConfigError: the calibration text is too short for `num_samples` sequences.
        """
        chosen, kept = choose_linears(
            model.module, self.skip_modules, in_multiple=IN_FEATURES_MULTIPLE
        )
        histograms = observe(model.module, chosen, self.draw(model, calibration).ids)
        ranges = {
            name: choose_range(found, self.range, self.percentile, model.module.dtype)
            for name, found in histograms.items()
        }
        write(folder, model, chosen, sorted(kept), ranges)
        facts = {"quantized": sorted(chosen), "kept": kept}
        seal(folder, method=_METHOD, model=model.fingerprint, facts=facts)

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by the int8 ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """

        def layer(
            product: Int8Product, bias: Tensor | None, bits: int, stored: ActivationRange | None
        ) -> StaticInt8Linear:
            assert stored is not None  # the seal says that this method wrote the folder
            return StaticInt8Linear(product, bias, bits, stored)

        scales = f"one calibrated scale per layer ({self.range})"
        model, kernel = load_int8(model, folder, _METHOD, self.kernel, layer, scales)
        return model.changed(self.params()), kernel
