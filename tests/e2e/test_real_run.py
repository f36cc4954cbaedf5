"""The default stack, small but real: what it must record about itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

import capibench
from capibench.records import STAGES


@pytest.fixture
def outcome(run_here: Callable[..., object]) -> object:
    return run_here("load.num_requests=60", "load.rate_per_s=20", "quantization=int8", "index=ivf")


def test_default_stack(outcome: object) -> None:
    document, rows = outcome.document, outcome.rows
    assert document["status"] == "finished", document["reason"]
    assert (rows.status == "ok").all()

    # Stage times add up to the end-to-end time, which is measured apart from them: exactly under
    # virtual time (test_virtual_time.py). Here what else the machine does falls between them now
    # and then, into some rows and never into a stage twice: 0.99 are near in a quiet run.
    sums_s = rows[[f"{stage}_s" for stage in STAGES]].sum(axis=1)
    e2e_s = rows.done_s - rows.intended_s
    gap_s = e2e_s - sums_s
    assert (gap_s >= -1e-6).all()
    assert ((gap_s <= 0.02 * e2e_s) | (gap_s <= 1e-4)).mean() >= 0.5

    metrics = document["metrics"]
    for name in (
        "latency.e2e.p50_ms", "latency.e2e.p99_ms", "ttft.p50_ms", "tpot.p50_ms",
        "throughput.requests_per_s", "quality.recall_at_k", "quality.perplexity",
        "quality.perplexity_ratio", "quality.kl_mean", "quality.kl_p99", "quality.few_rows.kl_mean",
        "quality.cloze_accuracy", "quality.cloze_loss", "quality.answer_f1",
        "model.compression_ratio",
        "memory.resident_bytes", "memory.peak_bytes", "cache.result.hit_rate",
    ):  # fmt: skip
        assert metrics[name]["value"] is not None, name
    assert 1.2 < metrics["model.compression_ratio"]["value"] < 4
    assert document["components"]["quantization"]["kernel"] != "none"

    schema = json.loads((Path(capibench.__file__).parent / "run_schema.json").read_text())
    jsonschema.validate(document, schema)
