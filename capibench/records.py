"""The rows from which everything else is derived, and the requests that cause them.

One `Request` goes into the pipeline, one `RequestRecord` comes out of it, whatever happened.
All times are seconds on the run's clock (`loop.time()`), counted from the start of the load;
durations are differences of that same clock. Standard library only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import IntEnum, StrEnum


class RequestPriority(IntEnum):
    """Five classes; a smaller number is served first."""

    CRITICAL = 1
    HIGH = 2
    MEDIUM = 3
    LOW = 4
    BACKGROUND = 5


class Phase(StrEnum):
    """Warm-up rows are kept but never enter a metric (METHOD: cold apart from warm)."""

    WARMUP = "warmup"
    MEASURE = "measure"


class RequestStatus(StrEnum):
    """How a request ended; only `OK` counts as successful."""

    OK = "ok"
    FAILED = "failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"


class RunStatus(StrEnum):
    """How a run ended. Only `FINISHED` runs carry metrics that may be compared."""

    FINISHED = "finished"
    FAILED = "failed"  # an exception ended it; the reason is recorded
    CRASHED = "crashed"  # the process died (signal, out of memory); its finished rows are kept
    SKIPPED = "skipped"  # the combination is impossible; the reason is recorded


@dataclass(frozen=True, slots=True)
class Request:
    """One planned request: drawn from the seed before the run, the same for every combination."""

    id: int
    question_id: str
    query: str
    query_class: str
    priority: int
    max_new_tokens: int
    intended_s: (
        float | None
    )  # offset from load start; None in a closed loop (sent when a user is free)
    deadline_s: float | None  # when the answer is due, seconds after the intended time; None: never
    phase: Phase


# Consecutive spans of one request, in pipeline order. They are timed one by one and their sum is
# checked against the end-to-end time, which the driver measures apart from them.
STAGES = (
    "sender",  # scheduled arrival → handed to the pipeline
    "result_cache",  # look-up of the whole answer, or waiting for who computes it already
    "embedding_cache",  # look-up of the query's vector
    "embed_queue",
    "embed",
    "search_queue",
    "search",
    "prompt",
    "output_cache",  # look-up of the rendered prompt's output
    "generate_queue",
    "generate",
    "store",  # filling the caches
)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One row of `records.parquet`. A stage that did not happen has the duration 0."""

    request_id: int
    phase: str
    question_id: str
    query_class: str
    priority: int
    status: str
    error: str | None  # "ExceptionType: message" of what failed
    intended_s: float
    sent_s: float
    first_token_s: float | None  # None when no token was generated for this request
    last_token_s: float | None
    done_s: float
    deadline_s: float | None
    sender_s: float
    result_cache_s: float
    embedding_cache_s: float
    embed_queue_s: float
    embed_s: float
    search_queue_s: float
    search_s: float
    prompt_s: float
    output_cache_s: float
    generate_queue_s: float
    generate_s: float
    store_s: float
    # "engine", "output_l1" or "output_l2"; "result_" with what `result_cache` says; "": it failed.
    served_by: str
    # "l1", "l2", "miss", "off" when it was not consulted, "joined" when another request computed
    # the same already and this one waited for it, "semantic": a similar question's answer.
    result_cache: str
    embedding_cache: str
    output_cache: str
    batch_id: int | None  # of the generation batch
    batch_size: int | None
    batch_reason: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    max_new_tokens: int
    retrieved_ids: tuple[str, ...]
    answer: str | None

    @property
    def e2e_s(self) -> float:
        """End-to-end latency, from the scheduled arrival (not from the moment of sending)."""
        return self.done_s - self.intended_s

    def as_dict(self) -> dict[str, object]:
        """Plain column → value mapping, JSON-serialisable."""
        return asdict(self)


RECORD_COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(RequestRecord))
