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
from capibench.quantization.gptqmodel_quantizer import check_calibration, quantize_with_gptqmodel
from capibench.quantization.round_to_nearest import check_packed_max_rows
from capibench.quantization.sealed import read_seal
from capibench.quantization.weight_only import load_weight_only

METHOD = "gptq"


@dataclass
class Gptq:
    """All linear layers of the decoder but `skip_modules` on a grid of 2^bits points per group."""

    bits: Literal[2, 3, 4, 8]
    group_size: Literal[0, 32, 64, 128]
    symmetric: bool
    desc_act: bool
    act_group_aware: bool
    damp_percent: float
    mse: float
    skip_modules: list[str]
    num_samples: int
    sequence_tokens: int
    batch_size: int
    seed: int
    packed_max_rows: int

    calibrated: ClassVar[bool] = True
    load_only: ClassVar[frozenset[str]] = frozenset({"packed_max_rows"})

    def __post_init__(self) -> None:
        if not 0 < self.damp_percent < 1:
            raise ValueError(
                f"damp_percent: got {self.damp_percent}; expected more than 0, under 1"
            )
        if self.mse < 0:
            raise ValueError(f"mse: got {self.mse}; expected 0 (off) or the norm's exponent")
        if self.desc_act and self.act_group_aware:
            raise ValueError("act_group_aware: got true; expected false where desc_act is true")
        check_calibration(
            self.num_samples, self.sequence_tokens, self.batch_size,
            self.seed,
        )  # fmt: skip
        check_packed_max_rows(self.packed_max_rows)

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "method": METHOD,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "desc_act": self.desc_act,
            "act_group_aware": self.act_group_aware,
            "damp_percent": self.damp_percent,
            "mse": self.mse,
            "skip_modules": ",".join(sorted(self.skip_modules)),
            "num_samples": self.num_samples,
            "sequence_tokens": self.sequence_tokens,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "packed_max_rows": self.packed_max_rows,
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write a GPTQ checkpoint, as Transformers and vLLM load it. `model` is not changed.

        Raises:
            ConfigError, MissingExtra, RunFailed: see `quantize_with_gptqmodel`.
        """
        quantize_with_gptqmodel(
            model,
            calibration,
            folder,
            method=METHOD,
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            skip_modules=self.skip_modules,
            num_samples=self.num_samples,
            sequence_tokens=self.sequence_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            gptq={
                # Version 1 stores zero points less one: no room for a zero point of 0.
                "format": "gptq" if self.symmetric else "gptq_v2",
                "desc_act": self.desc_act,
                "act_group_aware": self.act_group_aware,
                "damp_percent": self.damp_percent,
                "mse": self.mse,
            },
        )

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by packed ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        facts = read_seal(folder, method=METHOD, model=model.fingerprint)
        model, kernel = load_weight_only(model, folder, self.packed_max_rows, facts["kept"])
        return model.changed(self.params()), kernel
