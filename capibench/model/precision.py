"""Which number format the machine multiplies fast, and where: the one answer for every model."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]


@cache
def native_precision() -> Literal["bf16", "fp32"]:
    """bf16 where it has hardware (AMX or AVX512-BF16 on x86, BF16 on Arm, or a CUDA GPU that
    supports it), else fp32: there bf16 saves bytes, but is emulated in attention and in products of
    few rows (see `widened_linear`), and is less exact."""
    import torch  # here: runs that load no model build its choice too, with its precision

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    # The names under which torch reports hardware bf16: two of x86, two of Arm.
    native = any(
        capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
    )
    return "bf16" if native else "fp32"


def torch_dtype(precision: Precision) -> torch.dtype:
    """The dtype that a choice of precision means on this machine."""
    import torch

    resolved = native_precision() if precision == "auto" else precision
    return torch.bfloat16 if resolved == "bf16" else torch.float32


def native_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
