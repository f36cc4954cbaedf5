"""Objectives are checked, the environment is JSON, the noise kernel measures something."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capibench.measure import environment, noise


@pytest.mark.parametrize("name", ["interactive", "relaxed", "none"])
def test_every_slo_is_built(choice: Callable[..., Any], name: str) -> None:
    slo = choice("slo", name)
    bounds = slo.bounds_s(np.array([1, 2, 3, 4, 5]))
    assert (np.diff(bounds[np.isfinite(bounds)]) > 0).all()
    assert slo.sentence()


def test_an_unknown_priority_names_the_key(choice: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"slo\.e2e_ms: got critical; expected one bound for each"):
        choice("slo", "none", e2e_ms={"critical": 5.0})
    with pytest.raises(ValueError, match=r"slo\.ttft_ms: got 0\.0; expected more than 0"):
        choice("slo", "none", ttft_ms=0)


def test_environment_is_plain_json_and_complete() -> None:
    described = json.loads(json.dumps(environment.describe()))
    assert described["packages"]["numpy"] == np.__version__
    assert described["cpu"]["usable_cores"] >= 1
    assert described["memory_bytes"] > 0
    assert set(described["code"]) == {"commit", "dirty"}


def test_the_noise_kernel_takes_a_moment_and_drift_is_relative() -> None:
    assert noise.calibrate() > 0
    assert noise.drift(0.010, 0.012) == pytest.approx(0.2)
