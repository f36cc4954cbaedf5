"""The seam of index tuning: how much effort a search should make. Pure; the caller measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class RecallSample:
    """Recall of one effort on some queries: those it is tuned on, or those it is reported on."""

    per_query: npt.NDArray[np.float64]  # [n] recall of each query, a multiple of 1/k
    k: int

    def __post_init__(self) -> None:
        if len(self.per_query) == 0:
            raise ValueError("per_query: got no queries; expected at least 1")

    @property
    def mean(self) -> float:
        return float(self.per_query.mean())

    def interval(self) -> tuple[float, float, float]:
        """Mean with a two-sided 95 % interval: (mean, low, high); `lower_bound` and its mirror
        image at 97.5 % each."""
        missed = RecallSample(1 - self.per_query, self.k)
        return self.mean, self.lower_bound(0.975), 1 - missed.lower_bound(0.975)

    def lower_bound(self, confidence: float) -> float:
        """One-sided lower bound of the mean recall: at least this, with that confidence.

        The mean minus z standard errors. The queries are the sample, not the n·k neighbours,
        since a hard query misses several at once. One query that found nothing is added first:
        without it a sample without misses would look certain (the same cure, pseudo-observations,
        as Agresti and Coull, "Approximate is better than 'exact' for interval estimation of
        binomial proportions", The American Statistician 1998).
        """
        padded = np.append(self.per_query, 0.0)
        standard_error = float(padded.std(ddof=1)) / math.sqrt(len(padded))
        z = NormalDist().inv_cdf(confidence)
        return max(float(padded.mean()) - z * standard_error, 0.0)


@dataclass(frozen=True, slots=True)
class TriedEffort:
    """One measured rung of the ladder."""

    effort: int
    recall: float
    lower_bound: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The effort to use, and why."""

    effort: int
    recall: float  # mean on the tuning queries
    lower_bound: float  # of that mean
    met: bool  # False: no rung met the target; this is the most accurate one
    tried: tuple[TriedEffort, ...]  # in the order measured


class IndexTuning(Protocol):
    """What every choice of this group says of itself."""

    changes_effort: ClassVar[bool]  # of the index that is configured: an `EffortTuning`
    replaces_index: ClassVar[bool]  # by one that it chooses: a `budgeted.Budgeted`


class EffortTuning(IndexTuning, Protocol):
    """Decides which effort to use; measures nothing itself."""

    def choose(
        self, ladder: Sequence[int], measure: Callable[[int], RecallSample]
    ) -> Choice | None:
        """An effort out of the ascending `ladder`; None leaves the index as its yaml has it."""
