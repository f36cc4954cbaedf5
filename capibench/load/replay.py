"""Open loop after a recording: real arrivals, with their bursts, lulls and output lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from capibench.corpus.corpus import Question, classify_query
from capibench.errors import DataError
from capibench.load.load import Plan
from capibench.load.mix import RequestMix
from capibench.load.streams import LoadStreams
from capibench.load.traces import TraceRow, read_trace
from capibench.records import Phase, Request


@dataclass
class Replay(RequestMix):
    """The rows of a trace from `start_s` on: the warm-up first, then at most `num_requests`.

    What the trace does not say (text, priority, token budget) is drawn or taken as in every other
    load; so are deadlines. Planning reads the file, through `traces`.
    """

    path: str
    format: Literal["azure", "jsonl"]
    time_scale: float
    start_s: float
    max_new_tokens_cap: int
    mode: ClassVar[Literal["open", "closed"]] = "open"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.time_scale < float("inf"):
            raise ValueError(f"time_scale: got {self.time_scale}; expected above 0")
        if not 0 <= self.start_s < float("inf"):
            raise ValueError(f"start_s: got {self.start_s}; expected at least 0")
        if self.max_new_tokens_cap < 1:
            raise ValueError(
                f"max_new_tokens_cap: got {self.max_new_tokens_cap}; expected at least 1"
            )

    def plan(self, questions: Sequence[Question], streams: LoadStreams) -> Plan:
        trace = read_trace(self.path, self.format)
        rows = [row for row in trace.rows if row.arrival_s >= self.start_s]
        rows = rows[: self.warmup_requests + self.num_requests]
        if len(rows) <= self.warmup_requests:
            raise DataError(
                f"{self.path}: {len(rows)} rows from {self.start_s} s on; expected more than the "
                f"{self.warmup_requests} of the warm-up (load.warmup_requests)"
            )
        known = {question.id: question for question in questions}
        warm_drawn, drawn = self.draw_questions(questions, streams)
        split = self.warmup_requests
        warm_priorities = self.draw_priorities(split, streams.warmup)
        priorities = self.draw_priorities(self.num_requests, streams.measure)
        planned = [
            self._request(i, row, question, priority, known)
            for i, (row, question, priority) in enumerate(
                zip(rows, warm_drawn + drawn, warm_priorities + priorities, strict=False)
            )
        ]
        last_warm_s = planned[split - 1].intended_s if split else 0.0
        assert last_warm_s is not None
        return Plan(
            warmup=tuple(planned[:split]),
            measured=tuple(planned[split:]),
            window_begin_s=last_warm_s,
            closed_loop=None,
            facts={
                "trace_hash": trace.content_hash,
                "trace_rows": len(trace.rows),
                "capped_token_budgets": sum(
                    (row.max_new_tokens or 0) > self.max_new_tokens_cap for row in rows
                ),
            },
        )

    def describe(self) -> dict[str, str | int | float]:
        return {
            "arrivals": "replay",
            "path": self.path,
            "format": self.format,
            "time_scale": self.time_scale,
            **super().describe(),
        }

    def _request(
        self,
        number: int,
        row: TraceRow,
        drawn: Question,
        priority: int,
        known: Mapping[str, Question],
    ) -> Request:
        phase = Phase.WARMUP if number < self.warmup_requests else Phase.MEASURE
        asked = drawn
        if row.question_id is not None:
            if row.question_id not in known:
                raise DataError(
                    f"{self.path}:{row.line}: question_id: got {row.question_id!r}; expected one "
                    f"of the corpus's {len(known)} questions (load.questions={self.questions})"
                )
            asked = known[row.question_id]
        elif row.query is not None:
            asked = Question(  # relevance unknown: no question of the corpus has this id
                id=f"trace:{row.line}",
                text=row.query,
                relevant=(),
                answers=(),
                query_class=row.query_class or classify_query(row.query),
                split="",
            )
        if row.max_new_tokens is None:
            tokens = self.tokens_of(asked.query_class)
        else:
            tokens = min(row.max_new_tokens, self.max_new_tokens_cap)
        return Request(
            id=number,
            question_id=asked.id,
            query=asked.text,
            query_class=asked.query_class,
            priority=priority if row.priority is None else row.priority,
            max_new_tokens=tokens,
            intended_s=(row.arrival_s - self.start_s) * self.time_scale,
            deadline_s=self.deadline_of(asked.query_class),
            phase=phase,
        )
