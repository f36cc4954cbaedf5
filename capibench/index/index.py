"""The seam of vector search. Build and query parameters are apart: a sweep over the query
parameter (nprobe, efSearch) never rebuilds an index."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors

Ids = npt.NDArray[np.int64]


class VectorIndex(Protocol):
    """Inner product on unit vectors, that is cosine similarity. Built from yaml without doing
    anything; either `build` or `load` makes it searchable."""

    modeled: ClassVar[bool]  # True: times come from a table, and recall means nothing

    @property
    def max_batch_size(self) -> int:
        """Largest number of queries the pipeline hands over at once (1: unbatched)."""

    def build_params(self) -> dict[str, int | float | str | None]:
        """Everything that changes the built index; part of its artifact key."""

    def build(self, vectors: Vectors, ids: Ids) -> None:
        """Train if needed and add [n, d] `vectors` under unique `ids` [n]."""

    @property
    def effort(self) -> int | None:
        """Current value of the one query parameter that trades speed for recall (IVF: nprobe,
        HNSW: efSearch); None where search is exact."""

    def effort_ladder(self) -> tuple[int, ...]:
        """Ascending values of the effort that are worth trying; empty if search is exact."""

    def set_effort(self, effort: int) -> None:
        """Set the effort of the next searches."""

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """Ids [n, k] and similarities [n, k], best first; -1 pads where fewer than k exist."""

    def size_bytes(self) -> int:
        """Bytes of the searchable structure, vectors included, as serialised."""

    def save(self, path: Path) -> None:
        """Write one file."""

    def load(self, path: Path) -> None:
        """Read what `save` wrote; answers the same searches."""

    def describe(self) -> dict[str, str | int | float]:
        """Type and resolved parameters; recorded with the run."""
