"""Open loop, clockwork: the gentlest load of a given rate, which shows service times alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from capibench.corpus.corpus import Question
from capibench.load.load import Plan
from capibench.load.mix import RequestMix
from capibench.load.open_loop import open_plan
from capibench.load.streams import DrawStreams, LoadStreams


@dataclass
class Constant(RequestMix):
    """One request every 1 / `rate_per_s` seconds."""

    rate_per_s: float
    mode: ClassVar[Literal["open", "closed"]] = "open"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate_per_s < float("inf"):
            raise ValueError(f"rate_per_s: got {self.rate_per_s}; expected above 0")

    def plan(self, questions: Sequence[Question], streams: LoadStreams) -> Plan:
        return open_plan(self, questions, streams, self._arrivals)

    def describe(self) -> dict[str, str | int | float]:
        return {"arrivals": "constant", "rate_per_s": self.rate_per_s, **super().describe()}

    def _arrivals(self, num_requests: int, streams: DrawStreams) -> list[float]:
        return [(i + 1) / self.rate_per_s for i in range(num_requests)]
