"""Choices that no run can make, because they know the future; they say where they can be used."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.errors import ImpossibleCombination


@dataclass
class Offline:
    """`cache=belady`: refused in a run; in a sweep over all choices the cell is skipped."""

    bound: str

    def __post_init__(self) -> None:
        raise ImpossibleCombination(
            "cache",
            f"{self.bound} decides by requests that are yet to come, which a run does not know; "
            "expected another policy, or the bound beside all of them: capibench replay-cache "
            "RUN_FOLDER",
        )
