"""The few metrics that a run prints at its end; which ones, the metric table says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capibench.measure.metrics import METRICS


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Name → value of the headline metrics that the run has."""
    return {
        metric.name: metrics[metric.name]["value"]
        for metric in METRICS
        if metric.headline and metric.name in metrics
    }
