"""Meaning and words together: some questions name what they want, and an embedding blurs names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import bm25s
import numpy as np

from capibench.config import node_of
from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.fusion import (
    Candidates,
    FusionRule,
    WeightChoice,
    best,
    best_weight,
    fused_scores,
)
from capibench.index.index import Ids
from capibench.index.lexical import LexicalIndex
from capibench.index.quality import Relevance
from capibench.index.saved import INDEX_KIND, Saved, load_directory, save_directory
from capibench.index.stored_index import StoredIndex, as_whole, check_at_least_1
from capibench.index.vector_store import VectorStore


@dataclass
class HybridText:
    """The best `depth` of a dense index and of BM25 are scored by both, exactly, and fused.

    Whether fusing helps, and with which weight, depends on corpus and embedder (a fixed weight can
    be worse than either side), so the weight is tuned on questions whose answers are known. By
    vectors alone (`search`) it is the dense index, which recall and effort are about.
    """

    modeled: ClassVar[bool] = False

    dense: StoredIndex
    fusion: FusionRule
    dense_weight: float | None
    depth: int
    rank_constant: int
    k1: float
    b: float
    _lexical: LexicalIndex = field(init=False, repr=False)
    _weight: float | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_at_least_1(self, "depth", "rank_constant")
        if self.dense_weight is not None and not 0 <= self.dense_weight <= 1:
            raise ValueError(f"dense_weight: got {self.dense_weight}; expected 0 to 1, or null")
        if not 0 <= self.k1 < math.inf:
            raise ValueError(f"k1: got {self.k1}; expected a finite number of at least 0")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b: got {self.b}; expected 0 to 1")
        self._lexical = LexicalIndex(self.k1, self.b)
        self._weight = self.dense_weight

    @property
    def max_batch_size(self) -> int:
        return self.dense.max_batch_size

    @property
    def effort(self) -> int | None:
        return self.dense.effort

    def effort_ladder(self) -> tuple[int, ...]:
        return self.dense.effort_ladder()

    def set_effort(self, effort: int) -> None:
        self.dense.set_effort(effort)

    @property
    def weight(self) -> float | None:
        """Of the dense side, as given or chosen; None before it was."""
        return self._weight

    def set_weight(self, weight: float) -> None:
        """Set the dense side's weight, 0 to 1."""
        if not 0 <= weight <= 1:
            raise ValueError(f"weight: got {weight}; expected 0 to 1")
        self._weight = weight

    def fusion_params(self) -> dict[str, int | float | str | None]:
        """What a chosen weight depends on beside the built index."""
        return {
            "fusion": self.fusion,
            "dense_weight": self.dense_weight,
            "depth": self.depth,
            "rank_constant": self.rank_constant,
        }

    def build_params(self) -> dict[str, int | float | str | None]:
        dense = {f"dense_{name}": value for name, value in self.dense.build_params().items()}
        return {
            "type": "hybrid_text",
            **dense,
            "k1": self.k1,
            "b": self.b,
            "tokenizer": f"bm25s {bm25s.__version__}",
        }

    def build(self, vectors: Vectors, ids: Ids) -> None:
        """Raises: ValueError, always: it needs the texts."""
        raise ValueError("texts: got none; expected the text of each vector (build_texts)")

    def build_texts(self, vectors: Vectors, ids: Ids, texts: Sequence[str]) -> None:
        """Build both sides; the weight stays.

        Raises:
            ValueError: as the dense index, or not one text per vector.
        """
        _check_texts(texts, len(vectors))
        self.dense.build(vectors, ids)
        self._lexical = LexicalIndex(self.k1, self.b)
        self._lexical.add(texts)

    def add(self, vectors: Vectors, ids: Ids, texts: Sequence[str]) -> None:
        """Take in further vectors with their texts; errors as `StoredIndex.add`."""
        _check_texts(texts, len(vectors))
        store = self.dense.store
        self.dense.add(vectors, ids)
        self._lexical.add(texts)
        self._follow(store)

    def remove(self, ids: Ids) -> None:
        """Forget texts; errors as `StoredIndex.remove`. Their words weigh in how rare a word is
        until the index is compacted."""
        store = self.dense.store
        self.dense.remove(ids)
        self._follow(store)

    def search(
        self, queries: Vectors, k: int, allowed: Allowed | None = None
    ) -> tuple[Ids, Vectors]:
        """By vectors alone: as the dense index."""
        return self.dense.search(queries, k, allowed)

    def search_texts(
        self, queries: Vectors, texts: Sequence[str], k: int, allowed: Allowed | None = None
    ) -> tuple[Ids, Vectors]:
        """Ids and fused scores [m, k], best first.

        Args:
            queries: [m, d].
            texts: [m] the same queries as text.
            k: at most the number of vectors.
            allowed: only these ids; where it allows fewer than k, -1 pads.

        Raises:
            ValueError: as the dense index's search, or not one text per query.
            RuntimeError: no weight was given or chosen.
        """
        if self._weight is None:
            raise RuntimeError("no dense_weight was given, and none was chosen (choose_weight)")
        pairs = [
            best(c, fused_scores(c, self._weight, self.fusion, self.rank_constant), k)
            for c in self._candidates(queries, texts, k, allowed)
        ]
        if not pairs:
            return np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)
        scores = np.stack([scores for _, scores in pairs]).astype(np.float32)
        return np.stack([ids for ids, _ in pairs]), scores

    def choose_weight(
        self, queries: Vectors, texts: Sequence[str], relevant: Relevance, k: int
    ) -> WeightChoice:
        """Measure all weights on training questions whose right ids are known, and keep the best
        (`fusion.best_weight`)."""
        candidates = self._candidates(queries, texts, k, None)
        choice = best_weight(candidates, relevant, k, self.fusion, self.rank_constant)
        self._weight = choice.weight
        return choice

    def size_bytes(self) -> int:
        return self.dense.size_bytes() + self._lexical.num_bytes

    def save(self, path: Path) -> None:
        save_directory(path, INDEX_KIND, self.saved_facts(), self.saved_files())

    def saved_facts(self) -> dict[str, Any]:
        return {
            "component": node_of(self),
            "params": self.build_params(),
            "dense": self.dense.saved_facts(),
            "weight": self._weight,
        }

    def saved_files(self) -> Mapping[str, Callable[[Path], None]]:
        return {**self.dense.saved_files(), "words": self._lexical.write}

    def load(self, path: Path) -> None:
        """Read what `save` wrote; a weight that was chosen is that of the directory.

        Raises:
            DataError: as `StoredIndex.load`.
        """
        self.load_saved(load_directory(path, INDEX_KIND), path)

    def load_saved(self, saved: Saved, path: Path) -> None:
        """`load`, for whoever saved an index together with other things to `path`."""
        if saved.facts["params"] != self.build_params():
            raise DataError(
                f"{path}: not an index of type {type(self).__name__} with these parameters: got "
                f"{saved.facts['params']}; expected {self.build_params()}"
            )
        lexical = LexicalIndex(self.k1, self.b)
        lexical.read(saved.files["words"])
        self.dense.load_saved(Saved(saved.facts["dense"], saved.files, saved.num_bytes), path)
        self._lexical = lexical
        self._weight = saved.facts["weight"] if self.dense_weight is None else self.dense_weight

    def describe(self) -> dict[str, str | int | float]:
        described = {f"dense_{name}": value for name, value in self.dense.describe().items()}
        described |= {n: v for n, v in self.build_params().items() if v is not None}
        described |= {n: v for n, v in self.fusion_params().items() if v is not None}
        return described if self._weight is None else described | {"dense_weight": self._weight}

    def _candidates(
        self, queries: Vectors, texts: Sequence[str], k: int, allowed: Allowed | None
    ) -> list[Candidates]:
        """Of each query: the best `depth` of either side, with the true scores of both."""
        _check_texts(texts, len(queries))
        store = self.dense.store
        self._check_k(k)
        depth = min(max(self.depth, k), store.num_live)
        near_ids, _ = self.dense.search(queries, depth, allowed)
        among = store.live_rows() if allowed is None else allowed.rows_in(store)
        prepared = store.comparable(queries)
        gathered = []
        for i, text in enumerate(texts):
            lexical = self._lexical.scores(text)
            if among is not None:
                lexical[~among.mask] = 0.0
            near = store.rows_of(near_ids[i][near_ids[i] >= 0])
            worded = np.argpartition(-lexical, min(depth, len(lexical)) - 1)[:depth]
            rows = np.union1d(near, worded[lexical[worded] > 0])
            if len(rows):
                ordered, scores = store.rescore(prepared[i : i + 1], rows[None], len(rows))
                rows, dense = ordered[0], scores[0]
            else:
                dense = np.empty(0, dtype=np.float32)
            gathered.append(Candidates(store.ids_at(rows), dense, lexical[rows]))
        return gathered

    def _check_k(self, k: int) -> None:
        """The dense side is asked for more than k: what is wrong with k must be said of k."""
        if as_whole("k", k) > self.dense.num_vectors:
            raise ValueError(
                f"k: got {k}; expected at most the number of vectors, {self.dense.num_vectors}"
            )

    def _follow(self, before: VectorStore) -> None:
        """Where the dense index has numbered its rows anew, do the same."""
        if self.dense.store is not before:
            self._lexical.keep(before.occupied())


def _check_texts(texts: Sequence[str], num_vectors: int) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"texts: got {type(texts).__name__}; expected a list of texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}]: got {text!r}; expected text")
    if len(texts) != num_vectors:
        raise ValueError(f"texts: got {len(texts)}; expected one for each of {num_vectors} vectors")
