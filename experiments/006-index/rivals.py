"""What a user would have without our tuner: FAISS' own parameter search, autofaiss, other graphs.

Each rival names its index and the settings at which it says to reach a recall; `contest.py`
measures them. All get the queries that our tuner searches by, and pick by the mean recall on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import faiss
import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.index.index import Ids
from capibench.index.tuner.truth import Truth

# FAISS' page "Guidelines to choose an index", below a million vectors, from much memory to little
# (lists: 4 to 16 times the square root of n); and what our tuner tends to choose, in FAISS' words.
GUIDELINE = (
    "HNSW32",
    "HNSW32,SQ8",
    "IVF1024,Flat",
    "IVF1024,SQ8",
)
SAME_STRUCTURES = ("PQ96x4fs,RFlat", "IVF256,PQ96x4fs,RFlat", "IVF1024,PQ96x4fs,RFlat")
# Exploring happens beside other work, so near-quickest settings are timed again side by side.
_NEAR = 1.5
_MOST_NEAR = 3


class Searchable(Protocol):
    """What `laboratory.seconds_per_query` asks of an index."""

    max_batch_size: int

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Any]: ...


@dataclass
class Bare:
    """Another library's own call, without our checks of ids, filters and queries."""

    max_batch_size: int
    find: Callable[[Vectors, int], Ids]

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Any]:
        return self.find(queries, k), None


@dataclass(frozen=True)
class Found:
    """The settings of one structure that reach the recall on the tuning queries, quickest first;
    none where none does."""

    settings: tuple[str, ...]
    best_recall: float  # of all that was tried
    tuning_s: float


def explore(index: Any, truth: Truth, batch_size: int, min_recall: float) -> Found:
    """`faiss.ParameterSpace.explore`: all combinations of the parameters that it knows of the
    index, less those that cannot be better than what it has seen."""
    begin_s = perf_counter()
    k = truth.rows.shape[1]
    criterion = faiss.IntersectionCriterion(len(truth.queries), k)
    criterion.set_groundtruth(None, np.ascontiguousarray(truth.rows))
    criterion.nnn = k
    space = faiss.ParameterSpace()
    space.initialize(index)
    space.verbose = 0
    space.batchsize = batch_size
    found = space.explore(index, truth.queries, criterion)
    points = [found.optimal_pts.at(i) for i in range(found.optimal_pts.size())]
    enough = sorted((p.t, p.key) for p in points if p.perf >= min_recall)
    near = [key for t, key in enough if t <= _NEAR * enough[0][0]][:_MOST_NEAR]
    return Found(tuple(near), max(p.perf for p in points), perf_counter() - begin_s)


def set_faiss(index: Any, setting: str) -> None:
    faiss.ParameterSpace().set_index_parameters(index, setting)


def faiss_finder(index: Any) -> Callable[[Vectors, int], Ids]:
    def find(queries: Vectors, k: int) -> Ids:
        rows: Ids = index.search(queries, k)[1]
        return rows

    return find


def least_effort(
    find: Callable[[Vectors, int], Ids], set_effort: Callable[[int], object], truth: Truth,
    min_recall: float,
) -> Found:  # fmt: skip
    """The least candidate list, to within a tenth, that reaches the recall: by bisection."""
    begin_s = perf_counter()
    k = truth.rows.shape[1]

    def recall(effort: int) -> float:
        set_effort(effort)
        return float(truth.recall_of(find(truth.queries, k)).mean())

    low, high = k - 1, 1024
    best = recall(high)
    if best < min_recall:
        return Found((), best, perf_counter() - begin_s)
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        if recall(middle) >= min_recall:
            high = middle
        else:
            low = middle
    return Found((str(high),), best, perf_counter() - begin_s)


def graphs(vectors: Vectors) -> Iterator[tuple[str, Callable[[Vectors, int], Ids], Any, int]]:
    """hnswlib's and usearch's graphs where they are installed: name, search, what sets the effort,
    bytes."""
    try:
        import hnswlib
    except ImportError:
        print("hnswlib is not installed: left out")
    else:
        graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
        graph.init_index(len(vectors), M=16, ef_construction=80, random_seed=0)
        graph.add_items(vectors, num_threads=1)
        yield (
            "hnswlib M=16 ef_construction=80",
            lambda queries, k: graph.knn_query(queries, k, num_threads=1)[0].astype(np.int64),
            graph.set_ef,
            int(graph.index_file_size()),
        )
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch is not installed: left out")
    else:
        other = Index(ndim=vectors.shape[1], metric="ip", connectivity=16, expansion_add=128)
        other.add(np.arange(len(vectors)), vectors, threads=1)

        def find(queries: Vectors, k: int) -> Ids:
            keys = np.asarray(other.search(queries, k, threads=1).keys)
            return keys.reshape(len(queries), k).astype(np.int64)

        yield (
            "usearch connectivity=16 expansion_add=128",
            find,
            lambda effort: setattr(other, "expansion_search", effort),
            int(other.memory_usage),
        )


def autofaiss_indexes(folder: Path) -> Mapping[str, tuple[Any, str]]:
    """What `autofaiss_choices.py` left in a folder: name → index and autofaiss' own setting."""
    found = {}
    for path in sorted(folder.glob("*.index")):
        setting = path.with_suffix(".setting").read_text(encoding="utf-8").strip()
        found[path.stem] = (faiss.read_index(str(path)), setting)
    return found
