"""A run over an int8 key-value cache: it says what it holds and what that does to the language."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.slow
def test_int8_cache_is_recorded_with_its_own_quality(run_here: Callable[..., object]) -> None:
    outcome = run_here("engine.kv_cache=int8")
    document = outcome.document
    assert document["status"] == "finished", document["reason"]
    assert (outcome.rows.status == "ok").all()

    metrics, engine = document["metrics"], document["components"]["engine"]
    held = metrics["engine.kv_bytes_per_token"]["value"]
    assert held == engine["kv_bytes_per_token"] < 0.6 * engine["kv_bytes_per_token_native"]
    for name in ("perplexity_ratio", "kl_mean", "top1_agreement"):
        figure = metrics[f"quality.kv_cache.{name}"]
        assert figure["low"] <= figure["value"] <= figure["high"], name
    assert 0 < metrics["quality.kv_cache.kl_mean"]["value"] < 0.01
    assert metrics["quality.perplexity_ratio"]["value"] == 1  # the weights are as they were


def test_unknown_cache_is_refused_in_one_line(run_here: Callable[..., object]) -> None:
    outcome = run_here("engine.kv_cache=int7")
    assert outcome.code != 0
    reason = outcome.document["reason"]
    assert reason.startswith("engine.kv_cache: ")
    assert "'int7'" in reason
    assert "\n" not in reason
