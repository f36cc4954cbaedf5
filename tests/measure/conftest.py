"""Hand-made rows: one request with round numbers, of which a test changes what it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from capibench.measure.slo import Slo
from capibench.measure.summary import Summary, summarize
from capibench.records import RequestRecord


@dataclass
class MadeWindow:
    begin_s: float
    end_s: float


def make_row(request_id: int, intended_s: float, e2e_s: float, **changes: Any) -> RequestRecord:
    """All of the time is spent generating, from the scheduled moment on."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "phase": "measure",
        "question_id": f"q{request_id}",
        "query_class": "lookup",
        "priority": 3,
        "status": "ok",
        "error": None,
        "intended_s": intended_s,
        "sent_s": intended_s,
        "first_token_s": None,
        "last_token_s": None,
        "done_s": intended_s + e2e_s,
        "deadline_s": None,
        "sender_s": 0.0,
        "result_cache_s": 0.0,
        "embedding_cache_s": 0.0,
        "embed_queue_s": 0.0,
        "embed_s": 0.0,
        "search_queue_s": 0.0,
        "search_s": 0.0,
        "prompt_s": 0.0,
        "output_cache_s": 0.0,
        "generate_queue_s": 0.0,
        "generate_s": e2e_s,
        "store_s": 0.0,
        "served_by": "engine",
        "result_cache": "off",
        "embedding_cache": "off",
        "output_cache": "off",
        "batch_id": request_id,
        "batch_size": 1,
        "batch_reason": "idle worker",
        "prompt_tokens": 10,
        "output_tokens": 5,
        "max_new_tokens": 5,
        "retrieved_ids": (),
        "answer": None,
    }
    return RequestRecord(**{**values, **changes})


@pytest.fixture
def row() -> Callable[..., RequestRecord]:
    return make_row


@pytest.fixture
def summary() -> Callable[..., Summary]:
    """`summary(rows, begin_s, end_s, facts=..., slo=..., relevance=..., modeled=...)`."""

    def make(
        rows: list[RequestRecord],
        begin_s: float,
        end_s: float,
        facts: dict[str, float | None] | None = None,
        slo: Slo | None = None,
        **named: Any,
    ) -> Summary:
        return summarize(
            rows, facts or {}, MadeWindow(begin_s, end_s), slo or Slo(None, None), seed=1, **named
        )

    return make
