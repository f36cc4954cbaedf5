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
from typing import ClassVar, Literal

from capibench.model.language_model import LanguageModel
from capibench.quantization.gptqmodel_quantizer import check_calibration, quantize_with_gptqmodel
from capibench.quantization.packing import AWQ_BITS
from capibench.quantization.round_to_nearest import check_packed_max_rows
from capibench.quantization.sealed import read_seal
from capibench.quantization.weight_only import load_weight_only

METHOD = "awq"


@dataclass
class Awq:
    """4-bit weights, in the GEMM layout, of all linear layers of the decoder but `skip_modules`."""

    bits: int
    group_size: Literal[0, 32, 64, 128]
    symmetric: bool
    skip_modules: list[str]
    num_samples: int
    sequence_tokens: int
    batch_size: int
    seed: int
    packed_max_rows: int

    calibrated: ClassVar[bool] = True
    load_only: ClassVar[frozenset[str]] = frozenset({"packed_max_rows"})

    def __post_init__(self) -> None:
        if self.bits != AWQ_BITS:
            raise ValueError(
                f"bits: got {self.bits}; expected {AWQ_BITS}: AWQ's layout holds no others "
                "(gptq takes 2, 3, 4 and 8)"
            )
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
            "skip_modules": ",".join(sorted(self.skip_modules)),
            "num_samples": self.num_samples,
            "sequence_tokens": self.sequence_tokens,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "packed_max_rows": self.packed_max_rows,
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write an AWQ checkpoint, as Transformers and vLLM load it. `model` is not changed.

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
            gptq={},
        )

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by packed ones of `folder`, its
        norms by those that the scales were divided out of.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        facts = read_seal(folder, method=METHOD, model=model.fingerprint)
        model, kernel = load_weight_only(model, folder, self.packed_max_rows, facts["kept"])
        return model.changed(self.params()), kernel
