"""Speed, accuracy, memory or a balance: one search with other weights and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capibench.index.tuning.budgeted import Budgeted, Plan, check_weights
from capibench.index.tuning.features import Features
from capibench.index.tuning.preference import Preference


@dataclass
class Weighted(Budgeted):
    """Wants what its yaml says, whatever the vectors are like."""

    needs_features: ClassVar[bool] = False

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights)

    def plan(self, features: Features | None) -> Plan:
        return Plan(Preference(self.limits, self.weights), self.arms(), ())
