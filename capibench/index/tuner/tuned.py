"""What a tuner chose and everything that it measured, as a record that outlives it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capibench.index.tuning.features import Features
from capibench.index.tuning.halving import Found
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Point
from capibench.index.tuning.preference import Preference


@dataclass(frozen=True)
class Tuned:
    """A choice with its reasons. Figures on all vectors; the samples' are told apart by size."""

    node: Mapping[str, Any]  # configuration of the chosen index, query parameters included
    found: Found
    features: Features | None
    plan_reasons: tuple[str, ...]
    preference: Preference
    seconds: float  # that the tuning took
    conditions: Mapping[str, Any]  # k, batch size, threads, numbers of vectors and queries

    @property
    def recall(self) -> RecallSample:
        """Of the chosen index, on the split that it was not chosen by."""
        verified = self.found.verified
        return self.found.verdict.chosen.recall if verified is None else verified

    @property
    def reasons(self) -> tuple[str, ...]:
        """The choice in words, and how many candidates could not take part."""
        counts = Counter(left.reason for left in self.found.left_out)
        untried = tuple(f"{count} left out: {reason}" for reason, count in counts.items())
        return (*self.plan_reasons, *self.found.verdict.reasons, *untried)

    def rows(self) -> list[dict[str, Any]]:
        """Every measured point as one flat row; JSON."""
        verdict = self.found.verdict
        marks = {
            **{p.name: "front" for p in verdict.front},
            **{p.name: "tie" for p in verdict.ties},
            verdict.chosen.name: "chosen",
        }
        rows = [
            _row(p, self.preference.limits.confidence, marks.get(p.name, ""))
            for p in self.found.points
        ]
        return rows + [
            _row(p, self.preference.limits.confidence, "sample") for p in self.found.sample_points
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the choice, its reasons, what was left out and why, every point."""
        verdict = self.found.verdict
        return {
            "chosen": verdict.chosen.name,
            "family": verdict.chosen.arm.family,
            "node": dict(self.node),
            "met": verdict.met,
            "reasons": list(self.reasons),
            "ties": [p.name for p in verdict.ties],
            "front": [p.name for p in verdict.front],
            "recall": recall_json(self.recall),
            "weights": dict(self.preference.weights),
            "limits": asdict(self.preference.limits),
            "features": None if self.features is None else asdict(self.features),
            "seconds": self.seconds,
            "conditions": dict(self.conditions),
            "left_out": [asdict(left) for left in self.found.left_out],
            "points": self.rows(),
        }

    def to_csv(self) -> str:
        """`rows` as a table."""
        text = io.StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def recall_json(sample: RecallSample) -> dict[str, Any]:
    """Mean with its two-sided 95 % interval."""
    mean, low, high = sample.interval()
    return {"value": mean, "low": low, "high": high, "n": len(sample.per_query), "k": sample.k}


def _row(point: Point, confidence: float, mark: str) -> dict[str, Any]:
    query = " ".join(f"{name}={value}" for name, value in point.query.items())
    return {
        "name": point.name,
        "family": point.arm.family,
        "arm": point.arm.name,
        "query": query,
        "mark": mark,
        "num_vectors": point.num_vectors,
        "recall": point.recall.mean,
        "recall_bound": point.recall_bound(confidence),
        "num_queries": len(point.recall.per_query),
        "exact": point.exact,
        "latency_ms": point.latency_s * 1e3,
        "latency_ms_least": float(np.min(point.seconds)) * 1e3,
        "latency_ms_most": float(np.max(point.seconds)) * 1e3,
        "num_rounds": len(point.seconds),
        "memory_bytes": point.memory_bytes,
        "build_s": point.build_s,
    }
