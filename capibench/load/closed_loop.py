"""Closed loop: a fixed number of users, each of whom waits for an answer before asking again.

Its rate follows the server, so a slow server is asked less: good for capacity, wrong for latency
under a given demand. That is why it is a mode of its own and never the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from capibench.corpus.corpus import Question
from capibench.load.load import ClosedLoop, Plan
from capibench.load.mix import RequestMix
from capibench.load.streams import DrawStreams, LoadStreams
from capibench.records import Phase


@dataclass
class Closed(RequestMix):
    """`num_users` users who think before each request, for a fixed or an exponential time."""

    num_users: int
    think_time_ms: float
    think_time: Literal["fixed", "exponential"]
    mode: ClassVar[Literal["open", "closed"]] = "closed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_users < 1:
            raise ValueError(f"num_users: got {self.num_users}; expected at least 1")
        if not 0 <= self.think_time_ms < float("inf"):
            raise ValueError(f"think_time_ms: got {self.think_time_ms}; expected at least 0")

    def plan(self, questions: Sequence[Question], streams: LoadStreams) -> Plan:
        warm_questions, questions_asked = self.draw_questions(questions, streams)
        unknown = [None] * max(self.warmup_requests, self.num_requests)
        think_s = (
            *self._think_s(self.warmup_requests, streams.warmup),
            *self._think_s(self.num_requests, streams.measure),
        )
        return Plan(
            warmup=self.requests(warm_questions, unknown, Phase.WARMUP, 0, streams.warmup),
            measured=self.requests(
                questions_asked, unknown, Phase.MEASURE, self.warmup_requests, streams.measure
            ),
            window_begin_s=0.0,
            closed_loop=ClosedLoop(self.num_users, think_s),
            facts={},
        )

    def describe(self) -> dict[str, str | int | float]:
        return {
            "arrivals": "closed_loop",
            "num_users": self.num_users,
            "think_time_ms": self.think_time_ms,
            "think_time": self.think_time,
            **super().describe(),
        }

    def _think_s(self, num_requests: int, streams: DrawStreams) -> list[float]:
        mean_s = self.think_time_ms / 1000
        if self.think_time == "fixed":
            return [mean_s] * num_requests
        draws = streams.think_times.standard_exponential(num_requests)
        return [float(draw) * mean_s for draw in draws]
