"""An index for virtual time: it states how long the real one takes and searches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from capibench.embedder.embedder import Vectors
from capibench.embedder.service_table import ServiceTable
from capibench.errors import DataError
from capibench.index.index import Ids
from capibench.index.saved import INDEX_KIND, load_directory, save_directory


@dataclass
class ModeledIndex:
    """The same query always finds the same ids, but which ones means nothing: recall and hit rates
    of a run that uses it are never reported."""

    modeled: ClassVar[bool] = True

    service_table_s: Mapping[int, float]
    max_batch_size: int
    _table: ServiceTable = field(init=False, repr=False)
    _ids: Ids | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        self._table = ServiceTable(self.service_table_s)
        if self.max_batch_size > self._table.largest:
            raise ValueError(
                f"max_batch_size: got {self.max_batch_size}; "
                f"expected at most the largest measured size {self._table.largest}"
            )

    def service_s(self, num_items: int) -> float:
        """Seconds that the measured index takes for `num_items` queries at once."""
        return self._table.seconds(num_items)

    def build_params(self) -> dict[str, int | float | str | None]:
        return {"type": "modeled"}

    def build(self, vectors: Vectors, ids: Ids) -> None:
        """Remember the ids [n]; `vectors` are not looked at."""
        if len(ids) == 0:
            raise ValueError("vectors: got none; expected at least 1")
        if ids.dtype != np.int64 or ids.ndim != 1 or len(np.unique(ids)) != len(ids):
            raise ValueError(f"ids: got {ids.dtype} of shape {ids.shape}; expected unique int64")
        self._ids = ids.copy()

    @property
    def effort(self) -> None:
        """None: there is nothing to set."""

    def effort_ladder(self) -> tuple[int, ...]:
        """Empty: without recall there is nothing to trade."""
        return ()

    def set_effort(self, effort: int) -> None:
        """Raises: ValueError, always."""
        raise ValueError(
            f"effort: got {effort}; expected none, since a modeled index has no effort"
        )

    def search(self, queries: Vectors, k: int) -> tuple[Ids, Vectors]:
        """k neighbouring ids from a place that the query's bytes choose, with scores 1, 1/2, 1/3,
        ...; ValueError where k is below 1 or above the number of ids."""
        ids = self._known_ids()
        if not 1 <= k <= len(ids):
            raise ValueError(f"k: got {k}; expected 1 to the number of vectors, {len(ids)}")
        scores = np.tile(1.0 / np.arange(1, k + 1, dtype=np.float32), (len(queries), 1))
        found = np.empty((len(queries), k), dtype=np.int64)
        steps = np.arange(k)
        for row, query in enumerate(queries):
            digest = hashlib.blake2b(query.tobytes(), digest_size=8).digest()
            start = int.from_bytes(digest, "little") % len(ids)
            found[row] = ids[(start + steps) % len(ids)]
        return found, scores

    def size_bytes(self) -> int:
        """Bytes of the remembered ids; there is nothing else."""
        return int(self._known_ids().nbytes)

    def save(self, path: Path) -> None:
        ids = self._known_ids()

        def write(file_path: Path) -> None:
            with file_path.open("wb") as file:
                np.save(file, ids, allow_pickle=False)

        save_directory(path, INDEX_KIND, {"params": self.build_params()}, {"ids": write})

    def load(self, path: Path) -> None:
        """Raises: DataError if the directory was not written by `save`."""
        saved = load_directory(path, INDEX_KIND)
        if saved.facts["params"] != self.build_params():
            raise DataError(f"{path}: not an index of type {type(self).__name__}")
        ids: Ids = np.load(saved.files["ids"], allow_pickle=False)
        self._ids = ids

    def describe(self) -> dict[str, str | int | float]:
        return {
            "type": "modeled",
            "num_vectors": 0 if self._ids is None else len(self._ids),
            "service_1_s": self._table.seconds(1),
            "service_largest_s": self._table.seconds(self._table.largest),
            "service_largest_items": self._table.largest,
        }

    def _known_ids(self) -> Ids:
        if self._ids is None:
            raise RuntimeError("the index is neither built nor loaded")
        return self._ids
