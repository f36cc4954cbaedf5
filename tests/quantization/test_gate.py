"""Targets against measured values; what was not measured has not passed."""

import pytest

from capibench.quantization import QuantizationResult, Targets, check_targets
from capibench.quantization.gate import Gate

PROMISES = Targets(max_accuracy_loss=0.02, min_speedup_factor=1.8, min_memory_reduction=0.7)


def result(loss=None, speedup=None, reduction=0.75, **metrics):
    return QuantizationResult(
        result_id="1",
        original_model_path="a",
        quantized_model_path="b",
        config={"method": "int4"},
        original_size_mb=100.0,
        quantized_size_mb=100 * (1 - reduction),
        compression_ratio=1 / (1 - reduction),
        accuracy_loss=loss,
        speedup_factor=speedup,
        memory_reduction=reduction,
        quantization_time_seconds=1.0,
        validation_metrics=metrics,
        timestamp="2026-01-01T00:00:00.000+00:00",
    )


def interval(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 10}


def test_everything_met():
    gate = check_targets(
        result(
            loss=0.006,
            speedup=2.0,
            perplexity_ratio=interval(1.006, 1.004, 1.008),
            decode_speedup=interval(2.0, 1.9, 2.1),
        ),
        PROMISES,
    )
    assert gate.passed
    assert all(verdict.certain for verdict in gate.verdicts)
    loss = gate.by_target["max_accuracy_loss"]
    assert (loss.measured, loss.low, loss.high) == pytest.approx((0.006, 0.004, 0.008))
    assert loss.bound == 0.02
    assert gate.by_target["min_memory_reduction"].measured == 0.75


def test_one_failed_fails_all_and_says_by_what():
    gate = check_targets(
        result(loss=0.03, speedup=2.0, perplexity_ratio=interval(1.03, 1.028, 1.032)), PROMISES
    )
    assert not gate.passed
    verdict = gate.by_target["max_accuracy_loss"]
    assert not verdict.passed
    assert verdict.certain
    assert verdict.reason == "measured 0.03, wanted at most 0.02"
    assert gate.by_target["min_speedup_factor"].passed


def test_unmeasured_is_not_passed():
    gate = check_targets(result(), PROMISES)
    assert not gate.passed
    for name in ("max_accuracy_loss", "min_speedup_factor"):
        verdict = gate.by_target[name]
        assert verdict.measured is None
        assert not verdict.passed
        assert "not measured" in verdict.reason
    assert gate.by_target["min_memory_reduction"].passed


def test_an_interval_over_the_bound_is_not_certain():
    gate = check_targets(
        result(speedup=1.9, decode_speedup=interval(1.9, 1.7, 2.1)),
        Targets(None, 1.8, None),
    )
    assert gate.passed
    assert not gate.verdicts[0].certain
    assert "the interval holds both answers" in gate.verdicts[0].reason
    alone = check_targets(result(speedup=1.9), Targets(None, 1.8, None)).verdicts[0]
    assert alone.passed
    assert not alone.certain
    assert "without an interval" in alone.reason


def test_the_bound_itself_is_enough():
    assert check_targets(result(reduction=0.75), Targets(None, None, 0.75)).passed
    assert check_targets(result(loss=0.02), Targets(0.02, None, None)).passed


def test_without_targets_nothing_is_passed():
    assert check_targets(result(), Targets(None, None, None)) == Gate(())
    assert not Gate(()).passed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-0.1, None, None), "max_accuracy_loss: got -0.1; expected 0 or more"),
        ((None, 0, None), "min_speedup_factor: got 0; expected above 0"),
        ((None, None, 1), "min_memory_reduction: got 1; expected below 1"),
    ],
)
def test_targets_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        Targets(*values)
