"""Open loop, memoryless: what many independent users together look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from capibench.corpus.corpus import Question
from capibench.load.load import Plan
from capibench.load.mix import RequestMix
from capibench.load.open_loop import open_plan
from capibench.load.streams import DrawStreams, LoadStreams


@dataclass
class Poisson(RequestMix):
    """Independent exponential gaps with mean 1 / `rate_per_s` (dispersion index 1)."""

    rate_per_s: float
    mode: ClassVar[Literal["open", "closed"]] = "open"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate_per_s < float("inf"):
            raise ValueError(f"rate_per_s: got {self.rate_per_s}; expected above 0")

    def plan(self, questions: Sequence[Question], streams: LoadStreams) -> Plan:
        return open_plan(self, questions, streams, self._arrivals)

    def describe(self) -> dict[str, str | int | float]:
        return {"arrivals": "poisson", "rate_per_s": self.rate_per_s, **super().describe()}

    def _arrivals(self, num_requests: int, streams: DrawStreams) -> list[float]:
        gaps = streams.arrivals.standard_exponential(num_requests) / self.rate_per_s
        return [float(time_s) for time_s in np.cumsum(gaps)]
