"""Exact search: the baseline that every other index must beat, and the truth it is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss

from capibench.embedder.embedder import Vectors
from capibench.index.faiss_index import FaissIndex


@dataclass
class Flat(FaissIndex):
    """Compares each query with every vector. Recall is 1 by construction."""

    def build_params(self) -> dict[str, int | float | str | None]:
        return {"type": "flat", "faiss": faiss.__version__}

    @property
    def effort(self) -> None:
        """None: there is nothing to set."""

    def effort_ladder(self) -> tuple[int, ...]:
        """Empty: there is nothing to trade."""
        return ()

    def set_effort(self, effort: int) -> None:
        """Raises: ValueError, always."""
        raise ValueError(f"effort: got {effort}; expected none, since exact search has no effort")

    def _make(self, vectors: Vectors) -> Any:
        return faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))

    def _adopt(self, index: Any) -> None:
        if not isinstance(index, faiss.IndexIDMap2) or not isinstance(
            faiss.downcast_index(index.index), faiss.IndexFlatIP
        ):
            raise TypeError(f"it is {type(index).__name__}")
