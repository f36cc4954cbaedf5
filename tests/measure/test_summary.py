"""Metrics on rows whose answers are known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from capibench.measure.metrics import METRICS
from capibench.measure.slo import Slo

Make = Callable[..., Any]
BOUNDS = {"critical": 100.0, "high": 200.0, "medium": 300.0, "low": 400.0, "background": 500.0}


def _value(summary: Any, name: str) -> float | None:
    value: float | None = summary.metrics[name].value
    return value


def test_latency_counts_from_the_schedule_and_not_from_sending(row: Make, summary: Make) -> None:
    rows = [row(i, float(i), 0.5, sent_s=i + 0.4, sender_s=0.4, generate_s=0.1) for i in range(10)]
    made = summary(rows, 0.0, 9.0)
    assert _value(made, "latency.e2e.p50_ms") == pytest.approx(500)
    assert _value(made, "latency.stage.sender.p50_ms") == pytest.approx(400)
    assert _value(made, "sender.lateness_p99_ms") == pytest.approx(400)
    assert not made.validity.latency_valid


def test_percentiles_are_those_of_the_raw_rows(row: Make, summary: Make) -> None:
    made = summary([row(i, float(i), (i + 1) / 1000) for i in range(1001)], 0.0, 1000.0)
    assert _value(made, "latency.e2e.p50_ms") == pytest.approx(501)
    assert _value(made, "latency.e2e.p99_ms") == pytest.approx(991)
    assert "few_samples" not in made.metrics["latency.e2e.p99_ms"].flags
    assert "few_samples" in made.metrics["latency.e2e.p99_9_ms"].flags


def test_p99_of_too_few_requests_is_flagged(row: Make, summary: Make) -> None:
    p99 = summary([row(i, float(i), 0.1) for i in range(999)], 0.0, 999.0).metrics
    assert p99["latency.e2e.p99_ms"].flags == ("few_samples",)


def test_warm_up_rows_enter_no_metric(row: Make, summary: Make) -> None:
    rows = [row(i, float(i), 0.1) for i in range(5, 10)]
    cold = [row(i, float(i), 9.0, phase="warmup", status="failed") for i in range(5)]
    assert summary(cold + rows, 4.5, 9.0).metrics == summary(rows, 4.5, 9.0).metrics


def test_the_three_rates_differ(row: Make, summary: Make) -> None:
    # 10 scheduled in 10 s; 8 of them sent in the window; 6 of the 10 answered.
    rows = [
        row(
            i,
            i + 1.0,
            0.1 if i < 6 else 5.0,
            sent_s=i + 1.0 if i < 8 else 20.0,
            status="ok" if i < 6 else "timed_out",
        )
        for i in range(10)
    ]
    made = summary(rows, 0.0, 10.0)
    assert _value(made, "rate.offered_per_s") == pytest.approx(1.0)
    assert _value(made, "rate.achieved_per_s") == pytest.approx(0.8)
    assert _value(made, "rate.successful_per_s") == pytest.approx(0.6)
    assert _value(made, "success_rate") == pytest.approx(0.6)
    assert made.metrics["success_rate"].flags == ("failed_requests",)
    assert "successful_only" in made.metrics["latency.e2e.p95_ms"].flags
    assert any("4 of 10 requests" in reason for reason in made.validity.reasons)


def test_throughput_counts_what_was_done_before_the_drain(row: Make, summary: Make) -> None:
    rows = [row(i, float(i + 1), 5.0) for i in range(10)]  # done at 6..15, window ends at 10
    made = summary(rows, 0.0, 10.0)
    assert _value(made, "throughput.requests_per_s") == pytest.approx(0.5)
    assert _value(made, "throughput.output_tokens_per_s") == pytest.approx(2.5)


def test_warm_up_that_ended_in_the_window_is_work_done_in_it(row: Make, summary: Make) -> None:
    warm = [row(i, 0.0, i + 1.0, phase="warmup") for i in range(4)]  # done at 1, 2, 3, 4
    rows = [row(i, i - 1.0, 3.0) for i in range(4, 12)]  # done at 6..13
    made = summary(warm + rows, 2.0, 10.0)
    assert _value(made, "throughput.requests_per_s") == pytest.approx((2 + 5) / 8)
    assert _value(made, "throughput.output_tokens_per_s") == pytest.approx(5 * (2 + 5) / 8)


def test_one_request_has_no_rate(row: Make, summary: Make) -> None:
    made = summary([row(0, 1.0, 0.1)], 0.0, 1.0)
    assert _value(made, "throughput.requests_per_s") is None
    assert made.metrics["throughput.requests_per_s"].flags == ("no_window",)


def test_a_stage_counts_those_that_entered_it_even_without_waiting(
    row: Make, summary: Make
) -> None:
    rows = [row(i, float(i), 0.1, generate_queue_s=0.0 if i < 8 else 0.05) for i in range(10)]
    hit = {"batch_id": None, "generate_s": 0.0, "result_cache": "l1", "served_by": "result_l1"}
    vector = {"result_cache": "miss", "embedding_cache": "l2"}
    rows += [row(10, 10.0, 0.1, **hit), row(11, 11.0, 0.1, **vector)]
    made = summary(rows, 0.0, 11.0)
    counts = {
        "generate_queue": 11, "generate": 11, "search": 11, "search_queue": 11, "prompt": 11,
        "store": 11, "embed": 10, "embed_queue": 10, "sender": 12, "result_cache": 2,
        "embedding_cache": 1,
    }  # fmt: skip
    for stage, count in counts.items():
        assert made.metrics[f"latency.stage.{stage}.p50_ms"].n == count, stage
    assert _value(made, "latency.stage.generate_queue.p50_ms") == 0.0
    assert _value(made, "latency.stage.output_cache.p50_ms") is None


def test_goodput_counts_requests_within_the_bound_of_their_priority(
    row: Make, summary: Make
) -> None:
    rows = [row(i, i + 1.0, 0.25, priority=1 + i % 5) for i in range(10)]
    made = summary(rows, 0.0, 10.0, slo=Slo(BOUNDS, None))
    assert _value(made, "goodput_per_s") == pytest.approx(0.6)  # medium, low, background
    late = [row(i, i + 1.0, 0.25, deadline_s=0.2) for i in range(10)]
    assert _value(summary(late, 0.0, 10.0), "goodput_per_s") == 0.0


def test_first_token_objective_takes_a_cached_answer_as_all_at_once(
    row: Make, summary: Make
) -> None:
    rows = [
        row(0, 1.0, 0.3, first_token_s=1.05),
        row(1, 2.0, 0.3, first_token_s=2.2),
        row(2, 3.0, 0.05, served_by="result_l1"),
        row(3, 4.0, 0.3, served_by="result_l2"),
    ]
    made = summary(rows, 0.0, 4.0, slo=Slo(None, 100.0))
    assert _value(made, "goodput_per_s") == pytest.approx(0.5)


def test_token_times(row: Make, summary: Make) -> None:
    rows = [row(i, float(i), 0.5, first_token_s=i + 0.1, last_token_s=i + 0.5) for i in range(5)]
    made = summary(rows, 0.0, 4.0)
    assert _value(made, "ttft.p95_ms") == pytest.approx(100)
    assert _value(made, "tpot.p50_ms") == pytest.approx(100)  # 4 intervals in 400 ms


def test_hit_rates_ignore_look_ups_that_were_not_made(row: Make, summary: Make) -> None:
    outcomes = ["l1", "l1", "l2", "miss", "off", "off"]
    rows = [
        row(i, float(i), 0.1, result_cache=outcome, output_cache="off")
        for i, outcome in enumerate(outcomes)
    ]
    made = summary(rows, 0.0, 5.0)
    assert _value(made, "cache.result.hit_rate") == pytest.approx(0.75)
    assert _value(made, "cache.result.l1_hit_rate") == pytest.approx(0.5)
    assert _value(made, "cache.result.l2_hit_rate") == pytest.approx(0.25)
    assert made.metrics["cache.result.hit_rate"].n == 4
    assert made.metrics["cache.output.hit_rate"].value is None
    assert made.metrics["cache.output.hit_rate"].flags == ("no_lookups.output",)


def test_batches_are_counted_once(row: Make, summary: Make) -> None:
    sizes = {0: 3, 1: 3, 2: 3, 3: 1}
    rows = [row(i, float(i), 0.1, batch_id=i // 3, batch_size=sizes[i]) for i in range(4)]
    assert _value(summary(rows, 0.0, 3.0), "batch.mean_size") == pytest.approx(2.0)


def test_stage_times_that_do_not_add_up_are_seen(row: Make, summary: Make) -> None:
    rows = [row(i, float(i), 0.1, generate_s=0.1 if i else 0.05) for i in range(4)]
    made = summary(rows, 0.0, 3.0)
    assert _value(made, "stages.sum_ok_share") == pytest.approx(0.75)
    assert any("add up" in reason for reason in made.validity.reasons)


def test_quality_of_answers_and_retrieval(row: Make, summary: Make) -> None:
    relevance = {f"q{i}": (["right"], ["json dumps obj"]) for i in range(4)}
    answers = ["json.dumps(obj)", "json.dumps", "nothing", "json.dumps(obj)"]
    rows = [
        row(i, float(i), 0.1, answer=answers[i], retrieved_ids=("right",) if i < 3 else ("wrong",))
        for i in range(4)
    ]
    made = summary(rows, 0.0, 3.0, relevance=relevance)
    assert _value(made, "quality.hit_at_k") == pytest.approx(0.75)
    assert _value(made, "quality.answer_em") == pytest.approx(0.5)
    assert _value(made, "quality.answer_f1") == pytest.approx((1 + 0.8 + 0 + 1) / 4)


def test_facts_keep_their_intervals(row: Make, summary: Make) -> None:
    facts = {
        "quality.recall_at_k": 0.96,
        "quality.recall_at_k.low": 0.95,
        "quality.recall_at_k.high": 0.97,
        "model.baseline_bytes": 200.0,
        "model.bytes": 80.0,
    }
    made = summary([row(0, 1.0, 0.1)], 0.0, 1.0, facts=facts)
    recall = made.metrics["quality.recall_at_k"]
    assert (recall.value, recall.low, recall.high) == (0.96, 0.95, 0.97)
    assert _value(made, "model.compression_ratio") == pytest.approx(2.5)
    assert made.metrics["memory.peak_bytes"].flags == ("not_recorded",)


def test_a_modeled_run_has_no_quality(row: Make, summary: Make) -> None:
    made = summary(
        [row(0, 1.0, 0.1, answer="x", retrieved_ids=("p",))],
        0.0,
        1.0,
        facts={"quality.recall_at_k": 1.0, "quality.perplexity": 9.0},
        relevance={"q0": (["p"], ["x"])},
        modeled=True,
    )
    names = ("recall_at_k", "hit_at_k", "answer_f1", "answer_em", "perplexity")
    for name in names:
        assert made.metrics[f"quality.{name}"].value is None
        assert made.metrics[f"quality.{name}"].flags == ("modeled",)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_unknown_is_none_with_a_reason_and_never_zero(
    row: Make, summary: Make, num_rows: int
) -> None:
    rows = [row(i, float(i), 0.1, status="failed") for i in range(num_rows)]
    made = summary(rows, 0.0, float(num_rows))
    for name, metric in made.metrics.items():
        if metric.value is None:
            assert metric.flags, name
        else:
            assert math.isfinite(metric.value), name
    assert made.metrics["latency.e2e.p50_ms"].value is None
    assert not made.validity.latency_valid


def test_a_growing_queue_is_called_saturated(row: Make, summary: Make) -> None:
    rows = [row(i, i / 10, 0.1 + i * 0.05) for i in range(200)]  # serves 1 of 1.5 arrivals
    made = summary(rows, 0.0, 20.0)
    assert made.validity.saturated
    assert any(reason.startswith("saturated") for reason in made.validity.reasons)


def test_too_few_requests_make_no_claim_about_saturation(row: Make, summary: Make) -> None:
    rows = [row(i, i / 10, 0.1 + i) for i in range(29)]
    made = summary(rows, 0.0, 3.0)
    assert made.validity_document()["saturated"] is None
    assert made.metrics["backlog.growth_per_request"].flags == ("no_trend",)
    rows = [row(i, i / 30, 0.1 + i * 0.1) for i in range(200)]  # four times what it can serve
    assert summary(rows, 0.0, 6.7).validity.saturated is True


def test_drift_is_told(row: Make, summary: Make) -> None:
    made = summary([row(0, 1.0, 0.1)], 0.0, 1.0, facts={"noise.drift": -0.2})
    assert any("-20%" in reason for reason in made.validity.reasons)


def test_the_same_rows_give_the_same_summary(row: Make, summary: Make) -> None:
    rows = [row(i, float(i), 0.1 + (i * 7 % 13) / 100) for i in range(60)]
    assert summary(rows, 0.0, 59.0) == summary(list(reversed(rows)), 0.0, 59.0)


def test_the_table_is_well_formed() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert {"setup.index_tuning_s", "quality.few_rows.perplexity_ratio"} <= set(names)
    rates = {m.name: m.better for m in METRICS if m.name.endswith("hit_rate")}
    assert {rates.pop(name) for name in [*rates] if name.endswith("false_hit_rate")} == {"lower"}
    assert set(rates.values()) == {"neither"}
    for metric in METRICS:
        assert metric.meaning.endswith("."), metric.name
        assert metric.unit, metric.name
        assert set(metric.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._"), metric.name
