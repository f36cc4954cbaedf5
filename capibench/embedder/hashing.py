"""A lexical embedder without weights: for tests, and as the floor a learned one must clear."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from capibench.embedder.embedder import Vectors

_WORD = re.compile(r"\w+")


@dataclass
class Hashing:
    """Feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning",
    ICML 2009, §2) of lower-cased words and pairs of neighbouring words.

    Each feature adds +1 or -1, by one bit of its hash, to the coordinate that the other bits
    name; the signs make inner products unbiased. The vector is then scaled to unit length. A text
    without words counts as the single feature "", and so does the rare one whose features cancel
    out: a vector is never zero.
    """

    modeled: ClassVar[bool] = False

    dimension: int
    max_batch_size: int

    def __post_init__(self) -> None:
        for name in ("dimension", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")

    def open(self) -> None:
        """Nothing to load."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[n, dimension] float32 unit vectors; a text's vector does not depend on its batch."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            vectors[row] = self._encode_one(text)
        return vectors

    def _encode_one(self, text: str) -> Vectors:
        words = _WORD.findall(text.lower())
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        sums = self._sum_features([*words, *pairs])
        length = float(np.linalg.norm(sums))
        if length == 0.0:
            return self._sum_features([""])
        return (sums / length).astype(np.float32)

    def _sum_features(self, features: Sequence[str]) -> Vectors:
        digests = b"".join(
            hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            for feature in features
        )
        hashes = np.frombuffer(digests, dtype="<u8")
        signs = 1.0 - 2.0 * (hashes & 1).astype(np.float64)
        coordinates = ((hashes >> 1) % self.dimension).astype(np.int64)
        sums = np.bincount(coordinates, weights=signs, minlength=self.dimension)
        return sums.astype(np.float32)

    def fingerprint(self) -> str:
        """Names the method; change it with the features."""
        return f"hashing-words-pairs-blake2b-{self.dimension}"

    def describe(self) -> dict[str, str | int | float]:
        return {"type": "hashing", "dimension": self.dimension, "precision": "fp32"}
