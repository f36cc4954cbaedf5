"""The same requests in two runs: the only fair way to compare latencies (METHOD, rule 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from capibench.measure.stats import Array
from capibench.records import RequestStatus
from capibench.report.runs import RunResult


def paired_e2e_s(a: Sequence[RunResult], b: Sequence[RunResult]) -> tuple[Array, Array]:
    """End-to-end seconds of the same requests in `a` and `b`, by repetition and intended time.

    Only repetitions with the same plan are paired, and only requests that succeeded in both.
    """
    pairs = [
        _joined(one.rows, other.rows)
        for one in a
        for other in b
        if one.repeat == other.repeat and one.plan == other.plan
    ]
    frame = pd.concat(pairs) if pairs else pd.DataFrame(columns=["a", "b"], dtype="float64")
    return (
        np.asarray(frame["a"], dtype=np.float64),
        np.asarray(frame["b"], dtype=np.float64),
    )


def _joined(a: Any, b: Any) -> Any:
    def e2e(frame: Any, name: str) -> Any:
        ok = frame[frame["status"] == RequestStatus.OK.value]
        return pd.DataFrame(
            {
                "request_id": ok["request_id"],
                "question_id": ok["question_id"],
                name: ok["done_s"] - ok["intended_s"],
            }
        )

    if a.empty or b.empty:
        return pd.DataFrame(columns=["a", "b"], dtype="float64")
    return e2e(a, "a").merge(e2e(b, "b"), on=["request_id", "question_id"])[["a", "b"]]
