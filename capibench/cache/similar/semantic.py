"""Answers to questions that were asked in other words: the nearest remembered question by cosine.

Such a hit can be wrong, which no exact hit is. So it is off by default; its threshold is calibrated
to a budget of false hits (`semantic_calibration`); and in the run a random share of the hits is
computed all the same and compared, so that the false-hit rate is measured beside the hit rate.

The value is looked up in the exact cache under the remembered question's key: what expired, was
evicted or invalidated there is no hit here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capibench.model.answers import token_f1

Vector = npt.NDArray[np.float32]


@dataclass
class SemanticChoice:
    """What `cache/semantic` may be."""


@dataclass
class NoSemantic(SemanticChoice):
    """`cache/semantic=none`: only the very same question is a hit."""


@dataclass
class Cosine(SemanticChoice):
    """`cache/semantic=cosine`."""

    false_hit_budget: float  # share of the hits that may be wrong
    confidence: float  # that the true share is within the budget
    num_calibration_questions: int  # of the corpus
    paraphrase_share: float  # of the calibration's probes; the others were never asked before
    audit_share: float  # of the hits that are computed all the same
    same_answer_f1: float  # token F1 with the computed answer, from which on a hit was right
    max_entries: int  # questions that are remembered, the latest

    def __post_init__(self) -> None:
        for name in ("false_hit_budget", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected between 0 and 1")
        for name in ("paraphrase_share", "audit_share", "same_answer_f1"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected above 0, to 1")
        for name in ("num_calibration_questions", "max_entries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")


class SimilarQueries:
    """Exact search over the vectors of the latest `max_entries` questions; the oldest gives way.

    Not thread-safe. A search reads all vectors: 10,000 of 384 dimensions take about a millisecond.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._keys: list[bytes] = []
        self._rows: dict[bytes, int] = {}
        self._vectors: Vector = np.empty((0, 0), dtype=np.float32)
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: bytes, vector: Vector) -> None:
        """Remember a question's unit vector under the key of its result."""
        row = self._rows.get(key)
        if row is None:
            row = self._next % self._max_entries
            self._next += 1
            if row == len(self._keys):
                self._keys.append(key)
            else:
                oldest = self._keys[row]
                if self._rows.get(oldest) == row:  # not forgotten, nor added again since
                    del self._rows[oldest]
                self._keys[row] = key
            self._rows[key] = row
        if row >= len(self._vectors):
            grown = np.zeros(
                (min(self._max_entries, max(64, 2 * row)), len(vector)), dtype=np.float32
            )
            if len(self._vectors):
                grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        self._vectors[row] = vector

    def forget(self, key: bytes) -> None:
        """Its result is gone."""
        row = self._rows.pop(key, None)
        if row is not None:
            self._vectors[row] = 0.0

    def nearest(self, vector: Vector) -> tuple[bytes, float] | None:
        """The key of the nearest remembered question and its cosine; None when there is none."""
        if not self._rows:
            return None
        similarities = self._vectors[: len(self._keys)] @ vector
        row = int(np.argmax(similarities))
        key = self._keys[row]
        if self._rows.get(key) != row:  # only forgotten ones, whose vectors are zero, are as near
            return None
        return key, float(similarities[row])


class SemanticCache:
    """Which remembered question's answer may be served, and how often that was wrong."""

    def __init__(self, settings: Cosine, threshold: float | None, rng: np.random.Generator) -> None:
        """`threshold`: the least cosine of a hit; None: no threshold keeps the budget, so that
        nothing is ever a hit."""
        self.threshold = threshold
        self._settings = settings
        self._rng = rng
        self._similar: dict[str, SimilarQueries] = {}
        self._lookups = 0
        self._served = 0
        self._audited: list[bool] = []  # was it right?

    def find(self, scope: str, vector: Vector) -> bytes | None:
        """The result key of a question that is near enough. Questions in different scopes (token
        budgets, say) never answer each other."""
        self._lookups += 1
        similar = self._similar.get(scope)
        nearest = None if similar is None or self.threshold is None else similar.nearest(vector)
        if nearest is None or self.threshold is None:
            return None
        key, similarity = nearest
        return key if similarity >= self.threshold else None  # not a number is near to nothing

    def add(self, scope: str, key: bytes, vector: Vector) -> None:
        """Remember a question whose result is in the exact cache under `key`; not one whose vector
        holds no numbers, which would be the nearest to every other."""
        if not np.isfinite(vector).all():
            return
        similar = self._similar.get(scope)
        if similar is None:
            similar = self._similar[scope] = SimilarQueries(self._settings.max_entries)
        similar.add(key, vector)

    def forget(self, scope: str, key: bytes) -> None:
        """Its result is not in the exact cache any more."""
        self._similar[scope].forget(key)

    def is_audited(self) -> bool:
        """Draws whether a hit is to be computed all the same; if not, it counts as served."""
        audited = bool(self._rng.random() < self._settings.audit_share)
        self._served += not audited
        return audited

    def audit(self, cached_answer: str, computed_answer: str) -> None:
        """What a hit would have served, and what was computed instead."""
        f1 = token_f1(cached_answer, computed_answer)
        same = cached_answer == computed_answer or f1 >= self._settings.same_answer_f1
        self._audited.append(same)

    def stats(self) -> dict[str, Any]:
        """Counts as JSON; `wrong` of the `audited` hits would have been false."""
        return {
            "threshold": self.threshold,
            "lookups": self._lookups,
            "served": self._served,
            "audited": len(self._audited),
            "wrong": self._audited.count(False),
            "remembered": sum(len(similar) for similar in self._similar.values()),
        }
