"""The names a user picks from: how to quantize, and how many bits a weight may keep."""

from __future__ import annotations

from enum import StrEnum


class QuantizationMethod(StrEnum):
    """How the weights are made cheaper; a preset of `conf/quantization` says with what settings."""

    GPTQ = "gptq"
    AWQ = "awq"
    INT8 = "int8"
    INT4 = "int4"
    DYNAMIC = "dynamic"
    STATIC = "static"
    NONE = "none"

    @property
    def default_preset(self) -> str:
        """The preset that is taken where the user names none."""
        return _DEFAULT_PRESETS[self]


_DEFAULT_PRESETS = {
    QuantizationMethod.GPTQ: "gptq_4bit",
    QuantizationMethod.AWQ: "awq_4bit",
    QuantizationMethod.INT8: "int8",
    QuantizationMethod.INT4: "int4",
    QuantizationMethod.DYNAMIC: "dynamic_int8",
    QuantizationMethod.STATIC: "static_int8",
    QuantizationMethod.NONE: "none",
}


class QuantizationLevel(StrEnum):
    """How many bits of a weight are kept, each a type that is really stored and computed with."""

    ULTRA_LOW = "ultra_low"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    ULTRA_HIGH = "ultra_high"

    @property
    def bits(self) -> int:
        """Bits per stored weight, scales not counted."""
        return _LEVELS[self][0]

    @property
    def preset(self) -> str:
        """The preset of `conf/quantization` that stores this type."""
        return _LEVELS[self][1]


_LEVELS = {
    QuantizationLevel.ULTRA_LOW: (4, "int4"),
    QuantizationLevel.LOW: (8, "int8"),
    QuantizationLevel.MEDIUM: (16, "float16"),
    QuantizationLevel.HIGH: (32, "float32"),
    QuantizationLevel.ULTRA_HIGH: (64, "float64"),
}
