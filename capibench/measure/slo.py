"""The objectives that a request must meet to count as good: goodput decides (METHOD, rule 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capibench.records import RequestPriority

_NAMES = tuple(priority.name.lower() for priority in RequestPriority)


@dataclass
class Slo:
    """End-to-end bounds by priority, and one bound on the time to the first token."""

    e2e_ms: Mapping[str, float] | None
    ttft_ms: float | None

    def __post_init__(self) -> None:
        if self.e2e_ms is not None:
            if sorted(self.e2e_ms) != sorted(_NAMES):
                raise ValueError(
                    f"e2e_ms: got {', '.join(self.e2e_ms) or 'nothing'}; "
                    f"expected one bound for each of {', '.join(_NAMES)}"
                )
            for name, bound in self.e2e_ms.items():
                if not bound > 0:
                    raise ValueError(f"e2e_ms.{name}: got {bound}; expected more than 0")
        if self.ttft_ms is not None and not self.ttft_ms > 0:
            raise ValueError(f"ttft_ms: got {self.ttft_ms}; expected more than 0")

    def bounds_s(self, priorities: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The end-to-end bound of each request, in seconds; infinity where there is none."""
        bounds = np.full(len(priorities), math.inf)
        if self.e2e_ms is not None:
            for priority in RequestPriority:
                bounds[priorities == priority] = self.e2e_ms[priority.name.lower()] / 1e3
        return bounds

    def sentence(self) -> str:
        """The objectives in words, for the report."""
        parts = []
        if self.e2e_ms is not None:
            parts.append(
                "end to end within "
                + ", ".join(f"{self.e2e_ms[name]:g} ms ({name})" for name in _NAMES)
            )
        if self.ttft_ms is not None:
            parts.append(f"first token within {self.ttft_ms:g} ms")
        return "; ".join(parts) or "none: every answered request is good"
