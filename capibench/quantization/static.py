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

import numpy as np
from torch import Tensor

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_device
from capibench.quantization.activation_ranges import RangeMethod, choose_range, observe
from capibench.quantization.compressed_tensors import load_into, write
from capibench.quantization.int8_activations import (
    IN_FEATURES_MULTIPLE,
    ActivationRange,
    Kernel,
    StaticInt8Linear,
    choose_kernel,
)
from capibench.quantization.layers import choose_linears, describe_kept
from capibench.quantization.sealed import read_seal, seal

_METHOD = "static"


@dataclass
class StaticInt8:
    """int8 weights and calibrated int8 activations for all linear layers but `skip_modules`."""

    kernel: Kernel
    range: RangeMethod
    percentile: float | None
    num_samples: int
    sequence_tokens: int
    seed: int
    skip_modules: list[str]

    calibrated: ClassVar[bool] = True
    load_only: ClassVar[frozenset[str]] = frozenset({"kernel", "activation_bits"})

    def __post_init__(self) -> None:
        if (self.range == "percentile") != (self.percentile is not None):
            raise ValueError(
                f"percentile: got {self.percentile} with range={self.range}; "
                "expected a number with range=percentile, null with any other"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: got {self.percentile}; expected above 50, at most 100")
        if self.num_samples < 1:
            raise ValueError(f"num_samples: got {self.num_samples}; expected at least 1")
        if self.sequence_tokens < 2:
            raise ValueError(f"sequence_tokens: got {self.sequence_tokens}; expected at least 2")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}; expected at least 0")

    def params(self) -> dict[str, int | float | str | bool | None]:
        kernel = choose_kernel(self.kernel, native_device())
        return {
            "method": _METHOD,
            "kernel": kernel.name,
            "activation_bits": kernel.bits,
            "range": self.range,
            "percentile": self.percentile,
            "num_samples": self.num_samples,
            "sequence_tokens": self.sequence_tokens,
            "seed": self.seed,
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
        histograms = observe(model.module, chosen, self._windows(model, calibration))
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
        facts = read_seal(folder, method=_METHOD, model=model.fingerprint)
        kernel = choose_kernel(self.kernel, model.module.device)

        def replacement(
            q: Tensor, scales: Tensor, bias: Tensor | None, stored: ActivationRange | None
        ) -> StaticInt8Linear:
            assert stored is not None  # the seal says that this method wrote the folder
            return StaticInt8Linear(kernel.pack(q, scales), bias, kernel.bits, stored)

        load_into(model.module, folder, facts["quantized"], replacement)
        sentence = (
            f"{kernel}, one calibrated scale per layer ({self.range}); "
            f"{len(facts['quantized'])} layers{describe_kept(facts['kept'], model.dtype)}"
        )
        return model.changed(self.params()), sentence

    def _windows(self, model: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
        """`num_samples` seeded stretches of the joined texts, as GPTQ draws them (Frantar et al.,
        arXiv 2210.17323, section 4), none of them twice."""
        longest = getattr(model.module.config, "max_position_embeddings", self.sequence_tokens)
        if self.sequence_tokens > longest:
            raise ConfigError(
                "quantization.sequence_tokens",
                f"got {self.sequence_tokens}; expected at most the model's {longest} positions",
            )
        ids: list[int] = []
        for text in texts:
            ids += model.tokenizer(text, add_special_tokens=False)["input_ids"]
        num_windows = len(ids) // self.sequence_tokens
        if num_windows < self.num_samples:
            raise ConfigError(
                "quantization.num_samples",
                f"got {self.num_samples} of {self.sequence_tokens} tokens; the calibration text "
                f"has {len(ids)} tokens, enough for {num_windows}",
            )
        drawn = np.random.default_rng(self.seed).permutation(num_windows)[: self.num_samples]
        size = self.sequence_tokens
        return [ids[number * size : (number + 1) * size] for number in sorted(drawn)]
