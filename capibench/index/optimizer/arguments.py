"""A user's arrays and filters as the rooms below want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.errors import ConfigError
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.metadata import Condition
from capibench.index.metric import Metric, comparable
from capibench.index.optimizer.kept import Kept
from capibench.index.optimizer.settings import checked
from capibench.index.stored_index import as_whole
from capibench.index.tuner.candidates import Serving
from capibench.index.vector_store import VectorType

Numbers = npt.ArrayLike  # any real numbers: an array of whatever type, or lists of lists
Filter = Mapping[str, Condition] | Sequence[int] | Set[int] | Ids


def as_vectors(name: str, vectors: Numbers) -> Vectors:
    """[n, d] float32 (a copy only where they are not); ValueError for what is no such array, or
    has numbers that float32 cannot hold."""
    given = _array(name, vectors)
    if given.dtype.kind not in "fiu" or given.ndim != 2 or not given.shape[1]:
        raise ValueError(
            f"{name}: got {given.dtype} of shape {given.shape}; expected numbers of shape "
            "[n, dimension]"
        )
    with np.errstate(over="ignore"):
        converted = given.astype(np.float32, copy=False)
    if given.dtype != np.float32 and (np.isinf(converted) & ~np.isinf(given)).any():
        raise ValueError(f"{name}: got a number beyond 3.4e38; expected what float32 can hold")
    return converted


def as_query(name: str, query: Numbers) -> Vectors:
    """[1, d] float32 of one [d]; ValueError as `as_vectors`."""
    given = _array(name, query)
    if given.ndim != 1:
        raise ValueError(f"{name}: got shape {given.shape}; expected [dimension]")
    return as_vectors(name, given[None])


def as_ids(name: str, ids: Ids | Sequence[int]) -> Ids:
    """[n] int64. ValueError for what is no list of whole numbers that int64 can hold."""
    given = _array(name, ids)
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"{name}: got {given.dtype}; expected integers below 2^63")
    if given.ndim != 1:
        raise ValueError(f"{name}: got shape {given.shape}; expected one dimension")
    if given.dtype == np.uint64 and given.size and int(given.max()) >= 2**63:
        raise ValueError(f"{name}: got {int(given.max())}; expected integers below 2^63")
    return given.astype(np.int64)


def as_queries(queries: Numbers | None, dimension: int, metric: Metric) -> Vectors | None:
    """Two or more of `dimension` numbers; ValueError for others, or what `metric` cannot
    compare."""
    if queries is None:
        return None
    given = as_vectors("queries", queries)
    if len(given) < 2 or given.shape[1] != dimension:
        raise ValueError(
            f"queries: got shape {given.shape}; expected two or more of dimension {dimension}"
        )
    comparable("queries", given, metric)
    return given


def as_allowed(kept: Kept, wanted: Filter | None) -> Allowed | None:
    """What a search of `kept` may return; None: all. ValueError as `Kept.allowed`."""
    if wanted is None:
        return None
    if isinstance(wanted, Mapping):
        return kept.allowed(wanted)
    return Allowed(as_ids("filter", list(wanted) if isinstance(wanted, Set) else wanted))


def as_serving(
    k: int, metric: str, vectors_dtype: VectorType, batch_size: int, max_deleted_share: float
) -> tuple[int, Serving]:
    """What an optimizer's indexes have in common, and the results per query for which they are
    tuned; ConfigError for a wrong one."""
    try:
        k, batch_size = as_whole("k", k), as_whole("batch_size", batch_size)
    except ValueError as error:
        raise ConfigError("", str(error)) from error
    if vectors_dtype not in ("float32", "float16"):
        raise ConfigError("vectors_dtype", f"got {vectors_dtype!r}; expected float32, float16")
    share: object = max_deleted_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ConfigError("max_deleted_share", f"got {share!r}; expected 0 or more, below 1")
    return k, Serving(batch_size, checked(Metric, metric, "metric"), vectors_dtype, float(share))


def _array(name: str, given: object) -> npt.NDArray[np.generic]:
    """ValueError for lists whose lengths differ."""
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: got a {type(given).__name__} that is no array ({error}); expected numbers, "
            "as many in each row"
        ) from error
