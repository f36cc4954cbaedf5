"""No tuning: the index keeps the effort of its yaml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from capibench.index.tuning.objective import Choice, RecallSample


@dataclass
class NoTuning:
    """The baseline; it measures nothing and costs nothing."""

    changes_effort: ClassVar[bool] = False
    replaces_index: ClassVar[bool] = False

    def choose(
        self, ladder: Sequence[int], measure: Callable[[int], RecallSample]
    ) -> Choice | None:
        """None, always."""
        return None
