"""An embedder for virtual time: it states how long the real one takes and computes next to
nothing, so that a simulated day of traffic costs seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.embedder.service_table import ServiceTable


@dataclass
class ModeledEmbedder:
    """Vectors are hashes of the texts: the same text gives the same unit vector, nothing else
    about them means anything. Its quality is therefore never reported."""

    modeled: ClassVar[bool] = True

    dimension: int
    service_table_s: Mapping[int, float]
    max_batch_size: int
    _table: ServiceTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("dimension", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")
        self._table = ServiceTable(self.service_table_s)
        if self.max_batch_size > self._table.largest:
            raise ValueError(
                f"max_batch_size: got {self.max_batch_size}; "
                f"expected at most the largest measured size {self._table.largest}"
            )

    def open(self) -> None:
        """Nothing to load."""

    def service_s(self, num_items: int) -> float:
        """Seconds that the measured embedder takes for a batch of `num_items`."""
        return self._table.seconds(num_items)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[n, dimension] float32 unit vectors, by hash."""
        digests = b"".join(
            hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(self.dimension)
            for text in texts
        )
        octets = np.frombuffer(digests, dtype=np.uint8).reshape(len(texts), self.dimension)
        vectors = octets.astype(np.float32) - np.float32(127.5)  # never 0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def fingerprint(self) -> str:
        return f"modeled-shake128-{self.dimension}"

    def describe(self) -> dict[str, str | int | float]:
        return {
            "type": "modeled",
            "dimension": self.dimension,
            "service_1_s": self._table.seconds(1),
            "service_largest_s": self._table.seconds(self._table.largest),
            "service_largest_items": self._table.largest,
        }
