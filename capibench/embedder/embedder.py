"""The seam of embedding: texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Built from yaml without doing anything; `open()` loads what it needs."""

    modeled: ClassVar[bool]  # True: times come from a table, not from work

    @property
    def dimension(self) -> int:
        """Length of a vector; known after `open()`."""

    @property
    def max_batch_size(self) -> int:
        """Largest batch the pipeline hands over at once (1: unbatched)."""

    def open(self) -> None:
        """Load weights. Called once, before the warm-up; its time is a set-up cost."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[n, dimension] float32 vectors of unit length, row i for text i."""

    def fingerprint(self) -> str:
        """Identifies weights and precision; part of artifact and cache keys."""

    def describe(self) -> dict[str, str | int | float]:
        """What was really used: precision, kernel, weights' hash; recorded with the run."""
