"""Each layer with as many bits as it needs: more where rounding does damage, fewer where not.

The damage of each layer at each width is measured on calibration text (`sensitivity.py`), a plan
that meets the budget is chosen (`mixed_plan.py`), and the layers are rounded to nearest. The sum of
the single damages only guides the plan; what the whole model lost is measured on held-out text
like any other method's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from capibench.errors import ConfigError
from capibench.model.language_model import LanguageModel
from capibench.quantization.gptq_format import write_gptq
from capibench.quantization.layers import choose_linears, weight_of
from capibench.quantization.mixed_plan import Option, plan_mixed
from capibench.quantization.packed_linear import WHOLE_WORDS
from capibench.quantization.quantized_weight import QuantizedWeight
from capibench.quantization.round_to_nearest import check_group_size, check_packed_max_rows
from capibench.quantization.rounding import SCALE_DTYPE, check_scales, round_to_nearest
from capibench.quantization.sealed import read_seal, seal
from capibench.quantization.sensitivity import LayerSensitivity, sensitivity
from capibench.quantization.weight_only import load_weight_only

_METHOD = "mixed"


@dataclass
class Mixed:
    """Round-to-nearest with the width of each layer chosen under one budget."""

    widths: list[Literal[2, 3, 4, 8]]
    mean_bits: float | None
    max_kl: float | None
    group_size: int
    symmetric: bool
    sensitivity_tokens: int
    sensitivity_window: int
    skip_modules: list[str]
    packed_max_rows: int

    calibrated: ClassVar[bool] = True
    load_only: ClassVar[frozenset[str]] = frozenset({"packed_max_rows"})

    def __post_init__(self) -> None:
        if len(set(self.widths)) < 2:
            raise ValueError(f"widths: got {self.widths}; expected at least two different ones")
        if (self.mean_bits is None) == (self.max_kl is None):
            raise ValueError(
                f"mean_bits: got {self.mean_bits} with max_kl={self.max_kl}; expected exactly one "
                "of the two budgets, null for the other"
            )
        for name in ("mean_bits", "max_kl", "sensitivity_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: got {value}; expected more than 0")
        if self.sensitivity_window < 2:
            raise ValueError(
                f"sensitivity_window: got {self.sensitivity_window}; expected at least 2"
            )
        for bits in self.widths:
            check_group_size(self.group_size, bits)
        check_packed_max_rows(self.packed_max_rows)

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "method": _METHOD,
            "widths": ",".join(str(bits) for bits in sorted(set(self.widths))),
            "mean_bits": self.mean_bits,
            "max_kl": self.max_kl,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "sensitivity_tokens": self.sensitivity_tokens,
            "sensitivity_window": self.sensitivity_window,
            "skip_modules": ",".join(sorted(self.skip_modules)),
            "packed_max_rows": self.packed_max_rows,
        }

    def quantize(self, model: LanguageModel, calibration: Sequence[str], folder: Path) -> None:
        """Write the integers as a GPTQ checkpoint with a width for each layer.

        Raises:
            ConfigError: the budget cannot be met, a layer does not fit the groups, or the
                calibration text is empty.
        """
        multiple = max(WHOLE_WORDS[bits] for bits in self.widths)
        chosen, kept = choose_linears(
            model.module, self.skip_modules, self.group_size, multiple, multiple
        )
        check_scales(chosen, min(self.widths), self.group_size, self.symmetric)
        if not any(calibration):
            raise ConfigError("quantization.sensitivity_tokens", "there is no calibration text")
        ranking = sensitivity(
            model,
            calibration,
            lambda weight, bits: self._round(weight, bits).dequantized(),
            self.widths,
            [*self.skip_modules, *kept],
            self.sensitivity_tokens,
            self.sensitivity_window,
        )
        bits = self._plan(
            ranking, {name: weight_of(layer).shape[1] for name, layer in chosen.items()}
        )

        def rounded() -> Iterator[tuple[str, QuantizedWeight]]:
            for name, layer in chosen.items():
                yield name, self._round(weight_of(layer), bits[name])

        scheme = {
            "bits": Counter(bits.values()).most_common(1)[0][0],
            "group_size": self.group_size,
            "symmetric": self.symmetric,
        }
        write_gptq(model, rounded(), scheme, folder)
        facts = {
            "kept": kept,
            "bits": bits,
            "kl_of_each_layer_alone": {layer.name: dict(layer.kl) for layer in ranking},
        }
        seal(folder, method=_METHOD, model=model.fingerprint, facts=facts)

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by packed ones of `folder`.

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        facts = read_seal(folder, method=_METHOD, model=model.fingerprint)
        model, kernel = load_weight_only(model, folder, self.packed_max_rows, facts["kept"])
        return model.changed(self.params()), kernel

    def _round(self, weight: Tensor, bits: int) -> QuantizedWeight:
        return round_to_nearest(weight, bits, self.group_size, self.symmetric)

    def _plan(
        self, ranking: Sequence[LayerSensitivity], num_inputs: Mapping[str, int]
    ) -> dict[str, int]:
        """Bits of each layer within the budget."""
        options = {
            layer.name: {
                bits: Option(
                    self._stored_bytes(layer.num_weights, num_inputs[layer.name], bits),
                    max(0.0, layer.kl[bits]),  # rounding errors may put it just under 0
                )
                for bits in layer.kl
            }
            for layer in ranking
        }
        max_bytes = None
        if self.mean_bits is not None:
            max_bytes = int(sum(layer.num_weights for layer in ranking) * self.mean_bits / 8)
        try:
            plan = plan_mixed(options, max_bytes, self.max_kl)
        except ValueError as error:
            key = "mean_bits" if self.mean_bits is not None else "max_kl"
            value = self.mean_bits if self.mean_bits is not None else self.max_kl
            raise ConfigError(
                f"quantization.{key}", f"got {value}, which no choice of widths meets: {error}"
            ) from error
        return dict(plan.bits)

    def _stored_bytes(self, num_weights: int, num_in: int, bits: int) -> int:
        """Integers, scales and zero points of one layer in the checkpoint."""
        num_groups = num_weights // (self.group_size or num_in)
        return (num_weights + num_groups) * bits // 8 + num_groups * SCALE_DTYPE.itemsize
