"""Weights of 2 to 8 bits by rounding, without calibration data.

To the nearest grid point, in seconds even for large models: the yardstick of the methods that look
at data (GPTQ, AWQ). Or with the error of each weight made good by those rounded after it, for
which the model has to read random tokens (`random_tokens`): some 40 minutes on one thread for a
billion weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from capibench.model.language_model import LanguageModel
from capibench.quantization.error_feedback import round_with_feedback
from capibench.quantization.gptq_format import write_gptq
from capibench.quantization.layers import choose_linears, weight_of
from capibench.quantization.packed_linear import WHOLE_WORDS
from capibench.quantization.quantized_weight import QuantizedWeight
from capibench.quantization.random_tokens import RandomTokens
from capibench.quantization.rounding import check_scales, round_to_nearest
from capibench.quantization.sealed import read_seal, seal
from capibench.quantization.weight_only import load_weight_only


@dataclass
class RoundToNearest:
    """All linear layers but `skip_modules` on a grid of 2^bits points per group."""

    bits: Literal[2, 3, 4, 8]
    group_size: int
    symmetric: bool
    feedback: RandomTokens | None  # None: to the nearest point
    skip_modules: list[str]
    packed_max_rows: int

    calibrated: ClassVar[bool] = False
    load_only: ClassVar[frozenset[str]] = frozenset({"packed_max_rows"})

    def __post_init__(self) -> None:
        check_group_size(self.group_size, self.bits)
        check_packed_max_rows(self.packed_max_rows)

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "method": f"int{self.bits}",
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "skip_modules": ",".join(sorted(self.skip_modules)),
            "packed_max_rows": self.packed_max_rows,
            **({} if self.feedback is None else self.feedback.params()),
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write the integers as a GPTQ checkpoint. `model` is not changed, `calibration` not
        needed.

        Raises:
            ConfigError: a layer does not fit the groups, or a scale not its type.
        """
        multiple = WHOLE_WORDS[self.bits]
        chosen, kept = choose_linears(
            model.module, self.skip_modules, self.group_size, multiple, multiple
        )
        check_scales(chosen, self.bits, self.group_size, self.symmetric)
        scheme = {
            "bits": self.bits, "group_size": self.group_size, "symmetric": self.symmetric,
        }  # fmt: skip
        write_gptq(model, self._rounded(model, chosen), scheme, folder)
        seal(
            folder,
            method=str(self.params()["method"]),
            model=model.fingerprint,
            facts={"kept": kept},
        )

    def _rounded(
        self, model: LanguageModel, layers: Mapping[str, nn.Linear | Conv1D]
    ) -> Iterator[tuple[str, QuantizedWeight]]:
        grid = (self.bits, self.group_size, self.symmetric)
        if self.feedback is None:
            for name, layer in layers.items():
                yield name, round_to_nearest(weight_of(layer), *grid)
            return
        for name, moments in self.feedback.moments(model, layers):
            weight = weight_of(layers[name])
            yield name, round_with_feedback(weight, moments, *grid, self.feedback.damp_percent)

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by packed ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        facts = read_seal(folder, method=str(self.params()["method"]), model=model.fingerprint)
        model, kernel = load_weight_only(model, folder, self.packed_max_rows, facts["kept"])
        return model.changed(self.params()), kernel


def check_group_size(group_size: int, bits: int) -> None:
    """ValueError unless packed words of `bits` hold whole groups; 0 means per output channel."""
    multiple = WHOLE_WORDS[bits]
    if group_size < 0 or group_size % multiple:
        raise ValueError(
            f"group_size: got {group_size}; expected a multiple of {multiple} (32, 64 and 128 are "
            f"usual) for {bits} bits, or 0 for one group per output channel"
        )


def check_packed_max_rows(packed_max_rows: int) -> None:
    if packed_max_rows < 0:
        raise ValueError(f"packed_max_rows: got {packed_max_rows}; expected at least 0")
