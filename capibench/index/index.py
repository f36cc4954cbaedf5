"""The seam of vector search. Build and query parameters are apart: a sweep over the query
parameter (nprobe, efSearch) never rebuilds an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors

if TYPE_CHECKING:
    from capibench.index.fusion import WeightChoice
    from capibench.index.quality import Relevance

Ids = npt.NDArray[np.int64]


class VectorIndex(Protocol):
    """What the pipeline searches. Built from yaml without doing anything; either `build` or `load`
    makes it searchable. An index that also changes, filters and can be tuned is a
    `stored_index.StoredIndex`."""

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
        """Current value of the one query parameter that most trades speed for recall (IVF: nprobe,
        HNSW: efSearch); None where search is exact."""

    def effort_ladder(self) -> tuple[int, ...]:
        """Ascending values of the effort that are worth trying; empty if search is exact."""

    def set_effort(self, effort: int) -> None:
        """Set the effort of the next searches."""

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """Ids [n, k] and scores [n, k], best first; ValueError where fewer than k vectors exist."""

    def size_bytes(self) -> int:
        """Bytes of the index as saved, vectors included."""

    def save(self, path: Path) -> None:
        """Write one directory."""

    def load(self, path: Path) -> None:
        """Read what `save` wrote; answers the same searches."""

    def describe(self) -> dict[str, str | int | float]:
        """Type and resolved parameters; recorded with the run."""


@runtime_checkable
class TextIndex(Protocol):
    """A `VectorIndex` that also reads the texts themselves. Its `search` by vectors alone is that
    of its dense side, which is what recall and effort are about."""

    def build_texts(self, vectors: Vectors, ids: Ids, texts: Sequence[str]) -> None:
        """`build`, with the text [n] of each vector."""

    def search_texts(self, queries: Vectors, texts: Sequence[str], k: int) -> tuple[Ids, Vectors]:
        """`search`, with the text [m] of each query. Needs a weight."""

    @property
    def weight(self) -> float | None:
        """How much the vectors count beside the words; None: `choose_weight` must be called."""

    def set_weight(self, weight: float) -> None:
        """Set what an earlier `choose_weight` chose."""

    def choose_weight(
        self, queries: Vectors, texts: Sequence[str], relevant: Relevance, k: int
    ) -> WeightChoice:
        """Choose the weight on training questions whose right ids are known."""

    def fusion_params(self) -> dict[str, int | float | str | None]:
        """What a chosen weight depends on beside the built index."""
