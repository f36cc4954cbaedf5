"""A request's row while it is being filled: one stage after the other, none of the time twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from capibench.batching.request import Answered
from capibench.records import STAGES, Request, RequestRecord, RequestStatus


class RequestRow:
    """A request's row while it is being filled."""

    def __init__(
        self,
        request: Request,
        intended_s: float,
        sent_s: float,
        now: Callable[[], float],
        origin_s: float,
    ) -> None:
        self._now = now
        self._origin_s = origin_s
        self.values: dict[str, Any] = {
            "request_id": request.id,
            "phase": str(request.phase),
            "question_id": request.question_id,
            "query_class": request.query_class,
            "priority": int(request.priority),
            "status": RequestStatus.FAILED,
            "error": None,
            "intended_s": intended_s - origin_s,
            "sent_s": sent_s - origin_s,
            "first_token_s": None,
            "last_token_s": None,
            "deadline_s": request.deadline_s,
            **{f"{stage}_s": 0.0 for stage in STAGES},
            "served_by": "",
            "result_cache": "off",
            "embedding_cache": "off",
            "output_cache": "off",
            "batch_id": None,
            "batch_size": None,
            "batch_reason": None,
            "prompt_tokens": None,
            "output_tokens": None,
            "max_new_tokens": request.max_new_tokens,
            "retrieved_ids": (),
            "answer": None,
        }
        self.values["sender_s"] = sent_s - intended_s
        self._passed_s = sent_s
        self._last_stage = "sender"

    def passed(self, stage: str, at_s: float | None = None) -> None:
        """The request has left `stage`: it took all the time since the stage before it."""
        now_s = self._now() if at_s is None else at_s
        self.values[f"{stage}_s"] += now_s - self._passed_s
        self._passed_s = now_s
        self._last_stage = stage

    def passed_batched(self, stage: str, answered: Answered[Any]) -> None:
        """The same for a stage behind a batcher: until its batch left, and until the answer was
        back in hand."""
        self.passed(f"{stage}_queue", answered.dispatched_s)
        self.passed(stage)

    def fail(self, status: RequestStatus, error: Exception) -> None:
        self.values["status"] = status
        self.values["error"] = f"{type(error).__name__}: {error}"
        self.values["served_by"] = ""
        self.values["answer"] = None

    def finish(self) -> RequestRecord:
        """The row; a successful request's last stage lasts until the answer is out of here."""
        done_s = self._now()
        if self.values["status"] == RequestStatus.OK:
            self.passed(self._last_stage, done_s)
        self.values["status"] = str(self.values["status"])
        return RequestRecord(done_s=done_s - self._origin_s, **self.values)


def result_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a whole answer fills, computed or cached."""
    return {
        "answer": result["answer"],
        "retrieved_ids": tuple(result["retrieved_ids"]),
        "prompt_tokens": result["prompt_tokens"],
        "output_tokens": result["output_tokens"],
    }
