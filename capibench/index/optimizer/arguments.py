"""A user's arrays and filters as the rooms below want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.metadata import Condition
from capibench.index.metric import check_vectors
from capibench.index.optimizer.kept import Kept

Filter = Mapping[str, Condition] | Sequence[int] | Ids


def as_ids(ids: Ids | Sequence[int] | None, num_vectors: int) -> Ids:
    """[n] int64; None: 0 to `num_vectors` - 1. ValueError for what is no list of whole numbers."""
    if ids is None:
        return np.arange(num_vectors, dtype=np.int64)
    given = np.asarray(ids)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"ids: got {given.dtype}; expected integers")
    if given.ndim != 1:
        raise ValueError(f"ids: got shape {given.shape}; expected one dimension")
    return given.astype(np.int64)


def as_queries(queries: Vectors | None, vectors: Vectors) -> Vectors | None:
    """Checked against the vectors that they are asked of; ValueError where they do not fit."""
    if queries is None:
        return None
    check_vectors("queries", queries)
    if len(queries) < 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries: got shape {queries.shape}; expected two or more of dimension "
            f"{vectors.shape[1]}"
        )
    return queries


def as_allowed(kept: Kept, wanted: Filter | None) -> Allowed | None:
    """What a search of `kept` may return; None: all. ValueError as `Kept.allowed`."""
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        return kept.allowed(wanted)
    return Allowed(as_ids(wanted, 0))
