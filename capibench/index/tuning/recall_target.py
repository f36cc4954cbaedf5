"""The least effort that keeps a promise about recall: "10x faster" means nothing without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from capibench.index.tuning.objective import Choice, RecallSample, TriedEffort


@dataclass
class RecallTarget:
    """Smallest effort whose recall@k (k: passages per prompt) is at least `target_recall`,
    with the given confidence.

    Judged by the lower bound, not the mean: recall on 1,000 queries is uncertain by half a point
    or more, and the smallest effort that seems to suffice is by selection a lucky one. The ladder
    is walked up, since recall need not rise with every rung.
    """

    changes_effort: ClassVar[bool] = True
    replaces_index: ClassVar[bool] = False

    target_recall: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise ValueError(
                f"target_recall: got {self.target_recall}; expected above 0 and at most 1"
            )
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: got {self.confidence}; expected 0.5 or more, below 1")

    def choose(
        self, ladder: Sequence[int], measure: Callable[[int], RecallSample]
    ) -> Choice | None:
        """The first rung that meets the target, else the most accurate with `met=False`; None
        where the ladder is empty (an exact index has nothing to choose)."""
        tried: list[TriedEffort] = []
        for effort in ladder:
            sample = measure(effort)
            rung = TriedEffort(effort, sample.mean, sample.lower_bound(self.confidence))
            tried.append(rung)
            if rung.lower_bound >= self.target_recall:
                return Choice(effort, rung.recall, rung.lower_bound, True, tuple(tried))
        if not tried:
            return None
        best = max(tried, key=lambda rung: (rung.recall, -rung.effort))
        return Choice(best.effort, best.recall, best.lower_bound, False, tuple(tried))
