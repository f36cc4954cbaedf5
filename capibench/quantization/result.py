"""What quantizing one model gave, as one record that survives the process that made it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from capibench.errors import DataError
from capibench.measure.stats import Estimate

ACCURACY = "perplexity_ratio"
SPEED = "decode_speedup"
MEMORY = "memory_ratio"


@dataclass(frozen=True)
class QuantizationResult:
    """Every figure is counted or measured; None where nobody has measured it.

    One MB is 10^6 bytes. The two sizes are of weights in memory: all parameters and buffers, tied
    storage counted once, scales and zero points and whatever copies a kernel keeps included; the
    original stands in the precision that it is served in (`config["dtype"]`), whatever its files
    hold. Bytes on disk are in `validation_metrics`.
    """

    result_id: str  # UUID, version 4; a benchmark of the same weights keeps it
    original_model_path: str
    quantized_model_path: str  # a complete artifact; the original where the method stores nothing
    config: Mapping[str, Any]  # method, preset, settings, precision, calibration, kernel
    original_size_mb: float
    quantized_size_mb: float
    compression_ratio: float  # original_size_mb / quantized_size_mb
    accuracy_loss: float | None  # relative increase of held-out perplexity: 0.01 is 1 %
    speedup_factor: float | None  # seconds of decoding at batch 1: original / quantized
    memory_reduction: float  # 1 - quantized_size_mb / original_size_mb
    quantization_time_seconds: float  # of the run that made the artifact, whenever that was
    validation_metrics: Mapping[str, Any]
    timestamp: str  # ISO 8601, UTC

    def estimate(self, name: str) -> Estimate | None:
        """The metric `name` with its 95 % interval; None where it was not measured.

        `perplexity_ratio` is quantized / original (lower is better), `decode_speedup` and
        `memory_ratio` are original / quantized (higher is better).
        """
        if name == MEMORY:  # counted, not sampled
            ratio = self.compression_ratio
            return Estimate(ratio, ratio, ratio)
        found = self.validation_metrics.get(name)
        if not isinstance(found, Mapping) or found.get("value") is None:
            return None
        return Estimate(found["value"], found.get("low"), found.get("high"), found.get("n"))

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: object) -> QuantizationResult:
        """Raises DataError when a field is missing or unknown."""
        known = {field.name for field in fields(cls)}
        if not isinstance(document, Mapping) or set(document) != known:
            raise DataError(
                f"result: expected an object with the fields {', '.join(sorted(known))}"
            )
        return cls(**document)


def storable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` as JSON can hold them: a number that is not finite becomes None."""
    plain: dict[str, Any] = _plain(metrics)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
