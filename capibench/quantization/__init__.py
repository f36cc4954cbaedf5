"""Cheaper weights: one method a file.

The public names are imported when they are first asked for: importing this package, or listing
its methods, loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capibench.quantization.comparison import Comparison
    from capibench.quantization.gate import Gate, Targets, check_targets
    from capibench.quantization.manager import QuantizationManager
    from capibench.quantization.methods import QuantizationLevel, QuantizationMethod
    from capibench.quantization.result import QuantizationResult

__all__ = [
    "Comparison",
    "Gate",
    "QuantizationLevel",
    "QuantizationManager",
    "QuantizationMethod",
    "QuantizationResult",
    "Targets",
    "check_targets",
]

_MODULES = {
    "Comparison": "comparison",
    "Gate": "gate",
    "QuantizationLevel": "methods",
    "QuantizationManager": "manager",
    "QuantizationMethod": "methods",
    "QuantizationResult": "result",
    "Targets": "gate",
    "check_targets": "gate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
