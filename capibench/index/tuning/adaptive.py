"""Weights and families from what the vectors are like, each rule with its reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from capibench.index.tuning.budgeted import Budgeted, Plan, check_weights
from capibench.index.tuning.features import Features
from capibench.index.tuning.points import Arm
from capibench.index.tuning.preference import Preference


@dataclass
class Adaptive(Budgeted):
    """Begins with its yaml's weights and candidates, and changes them by measured features:

    - memory weighs as much as the vectors fill of the memory that they may take: bytes are worth
      nothing while there are plenty;
    - few vectors are scanned: no structure is worth its build;
    - neighbours that spread in many directions leave lists little to cut off, and short codes
      little to tell apart: `hard_families` are left out;
    - clusters are what lists are made for: where they are strong, `slow_families`, which take long
      to build, are left out;
    - queries that come from elsewhere find their neighbours less surely than any sample promises:
      recall weighs more, in proportion.
    """

    needs_features: ClassVar[bool] = True

    weights: Mapping[str, float]
    memory_mb: float
    scanned_mb: float
    hard_dimension: float
    hard_families: Sequence[str]
    strong_clusters: float
    slow_families: Sequence[str]
    strange_queries: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights)
        for name in (
            "memory_mb", "scanned_mb", "hard_dimension", "strong_clusters", "strange_queries"
        ):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: got {getattr(self, name)}; expected a finite number above 0"
                )
        for name in ("hard_families", "slow_families"):
            unknown = [f for f in getattr(self, name) if f not in self.candidates]
            if unknown:
                raise ValueError(
                    f"{name}: got {unknown[0]}; expected among {', '.join(self.candidates)}"
                )

    def plan(self, features: Features | None) -> Plan:
        assert features is not None
        weights, reasons = dict(self.weights), []
        filled = features.vectors_bytes / (self.memory_mb * 1e6)
        weights["memory"] *= min(filled, 1.0)
        reasons.append(
            f"memory weighs {weights['memory']:.3g}: the vectors fill {filled:.1%} of "
            f"{self.memory_mb:g} MB"
        )
        shift = features.query_shift
        if shift is not None and shift > self.strange_queries:
            weights["recall"] *= shift
            reasons.append(
                f"recall weighs {weights['recall']:.3g}: queries lie {shift:.2f} times as far from "
                "the vectors as these from each other"
            )
        arms = self._arms(features, reasons)
        return Plan(Preference(self.limits, weights), arms, tuple(reasons))

    def _arms(self, features: Features, reasons: list[str]) -> tuple[Arm, ...]:
        every = self.arms()
        if features.vectors_bytes <= self.scanned_mb * 1e6:
            reasons.append(
                f"only {every[0].name} is tried: {features.vectors_bytes / 1e6:.3g} MB are scanned "
                "sooner than anything is built"
            )
            return every[:1]
        unwanted: set[str] = set()
        intrinsic, clusters = features.intrinsic_dimension, features.cluster_share
        if intrinsic is not None and intrinsic > self.hard_dimension and self.hard_families:
            unwanted |= set(self.hard_families)
            reasons.append(
                f"{', '.join(self.hard_families)} left out: neighbours spread in about "
                f"{intrinsic:.0f} directions"
            )
        if clusters is not None and clusters > self.strong_clusters and self.slow_families:
            unwanted |= set(self.slow_families)
            reasons.append(
                f"{', '.join(self.slow_families)} left out: {clusters:.0%} of the variance lies "
                "between clusters, which lists cut along"
            )
        kept = tuple(arm for arm in every if arm.family not in unwanted)
        return kept or every[:1]
