"""int8 weights, and activations quantized as they come: no calibration, hardly any loss.

Every token is given the scale of its own largest magnitude while it is served, so that outliers
of one token do not coarsen another, and a token's answer does not depend on the batch that it
stands in (ZeroQuant, arXiv 2206.01861, section 4.1: "token-wise"; what vLLM calls W8A8 dynamic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_device
from capibench.quantization.compressed_tensors import write
from capibench.quantization.int8_activations import (
    IN_FEATURES_MULTIPLE,
    ActivationRange,
    DynamicInt8Linear,
    Int8Product,
    Kernel,
    choose_kernel,
)
from capibench.quantization.int8_loading import load_int8
from capibench.quantization.layers import choose_linears
from capibench.quantization.sealed import seal

_METHOD = "dynamic"


@dataclass
class DynamicInt8:
    """int8 weights and per-token int8 activations for all linear layers but `skip_modules`."""

    kernel: Kernel
    skip_modules: list[str]

    calibrated: ClassVar[bool] = False
    load_only: ClassVar[frozenset[str]] = frozenset({"kernel", "activation_bits"})

    def params(self) -> dict[str, int | float | str | bool | None]:
        kernel = choose_kernel(self.kernel, native_device())
        return {
            "method": _METHOD,
            "kernel": kernel.name,
            "activation_bits": kernel.bits,
            "skip_modules": ",".join(sorted(self.skip_modules)),
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write a checkpoint that Transformers and vLLM load. `model` is not changed, the
        calibration text not read."""
        chosen, kept = choose_linears(
            model.module, self.skip_modules, in_multiple=IN_FEATURES_MULTIPLE
        )
        write(folder, model, chosen, sorted(kept), ranges=None)
        facts = {"quantized": sorted(chosen), "kept": kept}
        seal(folder, method=_METHOD, model=model.fingerprint, facts=facts)

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by the int8 ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """

        def layer(
            product: Int8Product, bias: Tensor | None, bits: int, _: ActivationRange | None
        ) -> DynamicInt8Linear:
            return DynamicInt8Linear(product, bias, bits)

        model, kernel = load_int8(model, folder, _METHOD, self.kernel, layer, "one scale per token")
        return model.changed(self.params()), kernel
