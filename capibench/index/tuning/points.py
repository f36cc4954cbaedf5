"""What the tuner talks about: structures that can be built, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from capibench.index.metric import Floats
from capibench.index.tuning.objective import RecallSample

Value = int | float | str | None


@dataclass(frozen=True, slots=True)
class Arm:
    """One structure to build. Its query parameters are not part of it: they never rebuild."""

    name: str  # unique among the arms of one search
    family: str  # arms of one family differ only in build parameters
    changes: tuple[tuple[str, Value], ...]  # build parameters, in place of the family's own


@dataclass(frozen=True, eq=False)
class Point:
    """One structure at one setting of its query parameters, as measured."""

    arm: Arm
    query: Mapping[str, int]
    num_vectors: int  # in the structure when it was measured
    exact: bool  # compares whole vectors with all: recall is 1 by construction
    recall: RecallSample
    seconds: Floats  # [rounds] per query, in the serving mode; equal rounds of two points pair up
    memory_bytes: int  # that answering touches: of the structure, and of vectors that it scans
    build_s: float

    @property
    def name(self) -> str:
        """Unique among the points of one search."""
        settings = "".join(f" {name}={value}" for name, value in self.query.items())
        return self.arm.name + settings

    @property
    def latency_s(self) -> float:
        """Median over rounds of the mean seconds per query."""
        return float(np.median(self.seconds))

    def recall_bound(self, confidence: float) -> float:
        """One-sided lower bound of the mean recall."""
        return 1.0 if self.exact else self.recall.lower_bound(confidence)

    def timed(self, seconds: Floats) -> Point:
        """The same point with other rounds."""
        return replace(self, seconds=seconds)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A structure that was not measured at full size, and why."""

    arm: str
    num_vectors: int  # with which it would have been built
    reason: str
