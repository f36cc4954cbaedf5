"""What all strategies that choose an index are told: limits, candidates, and how to spend time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from capibench.index.tuning.features import Features
from capibench.index.tuning.halving import Halving
from capibench.index.tuning.points import Arm, Value
from capibench.index.tuning.preference import GOODS, Limits, Preference

Variations = Mapping[str, Mapping[str, Sequence[Value]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one search is to look for, and among what."""

    preference: Preference
    arms: tuple[Arm, ...]  # the simplest first
    reasons: tuple[str, ...]  # why so, where it was not simply configured


@dataclass
class Budgeted(ABC):
    """Chooses a whole index: structure, build parameters, query parameters.

    A strategy says what it wants (`plan`); `halving.search` finds it.
    """

    changes_effort: ClassVar[bool] = False
    replaces_index: ClassVar[bool] = True
    needs_features: ClassVar[bool]

    min_recall: float
    confidence: float
    max_latency_ms: float | None
    max_memory_mb: float | None
    max_build_s: float | None
    tuning_s: float
    num_queries: int
    halving: Halving
    recheck_share: float | None
    seed: int
    candidates: Variations

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall: got {self.min_recall}; expected above 0, at most 1")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: got {self.confidence}; expected 0.5 or more, below 1")
        for name in ("max_latency_ms", "max_memory_mb", "max_build_s", "tuning_s", "recheck_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}; expected a finite number above 0")
        if self.num_queries < 1:
            raise ValueError(f"num_queries: got {self.num_queries}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: got {self.seed}; expected at least 0")
        if not self.candidates:
            raise ValueError("candidates: got none; expected at least 1")
        for family, changes in self.candidates.items():
            for name, values in changes.items():
                if not values:
                    raise ValueError(f"candidates.{family}.{name}: got no values; expected some")

    @abstractmethod
    def plan(self, features: Features | None) -> Plan:
        """What to look for on vectors like these; `features` where `needs_features`."""

    @property
    def limits(self) -> Limits:
        """In the units in which points are measured."""
        return Limits(
            self.min_recall,
            self.confidence,
            None if self.max_latency_ms is None else self.max_latency_ms / 1e3,
            None if self.max_memory_mb is None else round(self.max_memory_mb * 1e6),
            self.max_build_s,
        )

    def arms(self) -> tuple[Arm, ...]:
        """Every combination of the values of each family, in the order of the configuration."""
        found = []
        for family, changes in self.candidates.items():
            for values in product(*changes.values()):
                pairs = tuple(zip(changes, values, strict=True))
                words = (f"{key}={'null' if value is None else value}" for key, value in pairs)
                name = " ".join([family, *words])
                found.append(Arm(name, family, pairs))
        return tuple(found)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ValueError unless there is a weight of at least 0 of each good, and one above."""
    if set(weights) != set(GOODS):
        raise ValueError(f"weights: got {', '.join(weights)}; expected {', '.join(GOODS)}")
    numbers = weights.values()
    if not all(0 <= number < math.inf for number in numbers) or not any(numbers):
        raise ValueError(
            f"weights: got {dict(weights)}; expected finite numbers from 0 up, and one above 0"
        )
