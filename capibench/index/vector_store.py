"""Exact vectors by id, apart from whatever structure finds candidates among them.

FAISS's own wrappers cannot re-rank, remove, name and filter together (its refining indexes cannot
remove, its graphs cannot either, its exhaustive codes take no filter). Here all four are ours and
the same for every type: a structure only ever says row numbers.

A row is a position that never moves. A removed vector leaves its row empty (id -1) until
`compacted`. Vectors that were loaded stay in their file, mapped into memory; later ones lie in
memory beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.exact_scan import NUM_QUERIES_FOR_BLAS, merged, nearest, nearest_among
from capibench.index.index import Ids
from capibench.index.metric import Metric, check_vectors, comparable

VectorType = Literal["float32", "float16"]
_ROWS_PER_BLOCK = 16_384  # gathered or converted at once: 24 MiB at 384 dimensions


@dataclass(frozen=True, eq=False)
class RowSet:
    """Some rows of a store: ascending, unique. Two are the same only if they are one object, to
    which what searches among them learn can be tied."""

    rows: Ids
    num_rows: int  # of the store, empty ones included

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """[num_rows] whether the row is in the set."""
        mask = np.zeros(self.num_rows, dtype=np.bool_)
        mask[self.rows] = True
        return mask

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """The mask, 8 rows a byte, as FAISS wants it."""
        return np.packbits(self.mask, bitorder="little")


class VectorStore:
    """[num_rows, dimension] exact vectors, each under the caller's id."""

    def __init__(
        self, vectors: npt.NDArray[np.float32 | np.float16], ids: Ids, metric: Metric
    ) -> None:
        """Take over arrays that are already as `of` makes them; -1 marks an empty row."""
        self.metric = metric
        self._base = vectors
        self._tail = np.empty((0, vectors.shape[1]), dtype=vectors.dtype)  # capacity, not content
        self._ids = ids
        self._num_live = int((ids >= 0).sum())
        self._tail_rows: dict[int, int] = {}
        self._live: RowSet | None = None
        self.version = 0  # grows with every change; what was derived from an older one is stale

    @classmethod
    def of(cls, vectors: Vectors, ids: Ids, metric: Metric, dtype: VectorType) -> VectorStore:
        """A copy of [n, d] float32 `vectors` under unique int64 `ids` [n] of at least 0.

        Raises:
            ValueError: wrong shape or type, no vectors, NaN, infinity, an id used twice, a zero
                vector where the metric is the cosine, or a number that float16 cannot hold.
        """
        check_vectors("vectors", vectors)
        if len(vectors) == 0:
            raise ValueError("vectors: got none; expected at least 1")
        check_ids(ids, len(vectors))
        return cls(_stored(vectors, metric, dtype), ids.copy(), metric)

    @property
    def dimension(self) -> int:
        return int(self._base.shape[1])

    @property
    def num_rows(self) -> int:
        """Rows that have been given out, empty ones included."""
        return len(self._ids)

    @property
    def num_live(self) -> int:
        """Vectors that a search can find."""
        return self._num_live

    @property
    def dtype(self) -> VectorType:
        return "float32" if self._base.dtype == np.float32 else "float16"

    @property
    def num_bytes(self) -> int:
        """Bytes of vectors and ids, empty rows included, as written."""
        return self.num_rows * (self.dimension * self._base.dtype.itemsize + self._ids.itemsize)

    @property
    def in_one_piece(self) -> Vectors | None:
        """All rows as one contiguous float32 array; None where there is no such array."""
        if len(self._base) < self.num_rows or self.dtype != "float32":
            return None
        return np.asarray(self._base)

    def ids_at(self, rows: Ids) -> Ids:
        """The ids of `rows`, whatever their shape; a row of -1 stays -1."""
        if not len(self._ids):
            return np.full_like(rows, -1)
        return np.where(rows < 0, np.int64(-1), self._ids[rows])

    def ids_in(self, rows: Ids) -> Ids:
        """The ids of rows that all exist, whatever their shape: quicker than `ids_at`."""
        ids: Ids = self._ids[rows]
        return ids

    def rows_of(self, ids: Ids) -> Ids:
        """The rows of `ids` [n]; -1 for an id that is not here."""
        order, in_order = self._base_order
        rows: Ids = np.full(len(ids), -1, dtype=np.int64)
        if len(order):
            place = np.minimum(np.searchsorted(in_order, ids), len(order) - 1)
            found = order[place]
            # A row emptied since the order was made does not bear its old id any more.
            rows = np.where((in_order[place] == ids) & (self._ids[found] == ids), found, rows)
        if self._tail_rows:
            for i in np.flatnonzero(rows < 0):
                rows[i] = self._tail_rows.get(int(ids[i]), -1)
        return rows

    @cached_property
    def _base_order(self) -> tuple[Ids, Ids]:
        """Rows of the first piece in the order of their ids, and those ids."""
        ids = self._ids[: len(self._base)]
        live = np.flatnonzero(ids >= 0)
        order = live[np.argsort(ids[live], kind="stable")]
        return order, ids[order]

    def occupied(self) -> Ids:
        """The rows that are not empty, ascending."""
        return np.flatnonzero(self._ids >= 0)

    def live_rows(self) -> RowSet | None:
        """All rows that are not empty; None where none is empty."""
        if self._num_live == self.num_rows:
            return None
        if self._live is None:
            self._live = RowSet(self.occupied(), self.num_rows)
        return self._live

    def add(self, vectors: Vectors, ids: Ids) -> None:
        """Give [m, d] `vectors` the next rows.

        Raises:
            ValueError: as `of`, another dimension, or an id that is here already. Nothing is added.
        """
        stored = _stored(vectors, self.metric, self.dtype)
        if vectors.shape[1] != self.dimension:
            raise ValueError(
                f"vectors: got dimension {vectors.shape[1]}; expected {self.dimension}"
            )
        check_ids(ids, len(vectors))
        present = ids[self.rows_of(ids) >= 0]
        if len(present):
            raise ValueError(f"ids: got {int(present[0])}, which is in the index already")
        begin = self.num_rows - len(self._base)
        needed = begin + len(stored)
        if needed > len(self._tail):  # doubled, so that adding one by one costs no square
            grown = np.empty((max(needed, 2 * len(self._tail)), self.dimension), stored.dtype)
            grown[:begin] = self._tail[:begin]
            self._tail = grown
        self._tail[begin:needed] = stored
        self._tail_rows |= {int(id_): self.num_rows + i for i, id_ in enumerate(ids)}
        self._ids = np.concatenate([self._ids, ids])
        self._num_live += len(ids)
        self._changed()

    def remove(self, ids: Ids) -> None:
        """Empty the rows of `ids`.

        Raises:
            ValueError: an id is given twice or is not here. Nothing is removed.
        """
        check_ids(ids, None)
        rows = self.rows_of(ids)
        if (rows < 0).any():
            raise ValueError(f"ids: got {int(ids[rows < 0][0])}, which is not in the index")
        self._ids[rows] = -1
        for id_ in ids:
            self._tail_rows.pop(int(id_), None)
        self._num_live -= len(ids)
        self._changed()

    def compacted(self) -> VectorStore:
        """A store of the live vectors only, in the same order, with rows of their own."""
        rows = self.occupied()
        vectors = np.empty((len(rows), self.dimension), dtype=self._base.dtype)
        split = int(np.searchsorted(rows, len(self._base)))
        vectors[:split] = self._base[rows[:split]]
        vectors[split:] = self._tail[rows[split:] - len(self._base)]
        return VectorStore(vectors, self._ids[rows], self.metric)

    def comparable(self, queries: Vectors, name: str = "queries") -> Vectors:
        """`queries` [m, d] as the metric compares them; ValueError where they cannot be, which
        calls them `name`."""
        prepared = comparable(name, queries, self.metric)
        if queries.shape[1] != self.dimension:
            raise ValueError(f"{name}: got dimension {queries.shape[1]}; expected {self.dimension}")
        return prepared

    def blocks(self) -> Iterator[Vectors]:
        """All rows in order, as contiguous float32 blocks."""
        for _, block in self._pieces():
            yield block

    def sample(self, num_vectors: int, seed: int) -> Vectors:
        """At most `num_vectors` live vectors, drawn without replacement by `seed`, in row order."""
        rows = self.occupied()
        if len(rows) > num_vectors:
            chosen = np.random.default_rng(seed).choice(len(rows), num_vectors, replace=False)
            rows = rows[np.sort(chosen)]
        elif len(rows) == self.num_rows and self.in_one_piece is not None:
            return self.in_one_piece
        return self._at(rows)

    def scan(self, queries: Vectors, k: int, among: RowSet | None) -> tuple[Ids, Vectors]:
        """Rows and scores [m, k] of the nearest live vectors, by comparing all of `among` (None:
        all). `queries` come from `comparable`; -1 pads."""
        among = self.live_rows() if among is None else among
        if among is None:
            parts = [
                (np.where(rows < 0, rows, rows + begin), scores)
                for begin, block in self._pieces()
                for rows, scores in [nearest(queries, block, k, self.metric)]
            ]
            return parts[0] if len(parts) == 1 else merged(parts, k)
        if len(queries) < NUM_QUERIES_FOR_BLAS and self.in_one_piece is not None:
            return nearest_among(queries, self.in_one_piece, among.rows, k, self.metric)
        parts = []
        for begin in range(0, max(len(among.rows), 1), _ROWS_PER_BLOCK):
            rows = among.rows[begin : begin + _ROWS_PER_BLOCK]
            places, scores = nearest(queries, self._at(rows), k, self.metric)
            parts.append((np.append(rows, -1)[places], scores))
        return parts[0] if len(parts) == 1 else merged(parts, k)

    def rescore(self, queries: Vectors, candidates: Ids, k: int) -> tuple[Ids, Vectors]:
        """The k best of each query's `candidates` [m, c], by true score. Rows, where -1 ends a
        query's list; the result is as that of `scan`."""
        if self.in_one_piece is not None:
            return nearest_among(queries, self.in_one_piece, candidates, k, self.metric)
        unique, places = np.unique(candidates, return_inverse=True)
        places = places.reshape(candidates.shape)
        if unique[0] < 0:  # the place of -1 becomes -1
            unique, places = unique[1:], places - 1
        if not len(unique):
            return merged([(candidates[:, :0], np.empty((len(queries), 0), np.float32))], k)
        found, scores = nearest_among(queries, self._at(unique), places, k, self.metric)
        return np.append(unique, -1)[found], scores

    def rows_from(self, begin: int) -> Vectors:
        """Float32 vectors of all rows from `begin` on, copied."""
        return self._at(np.arange(begin, self.num_rows))

    def write_vectors(self, path: Path) -> None:
        """Write an .npy file; empty rows stay where they are."""
        with path.open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(self._base.dtype),  # type: ignore[no-untyped-call]
                "fortran_order": False,
                "shape": (self.num_rows, self.dimension),
            }
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            file.write(np.ascontiguousarray(self._base).data)
            file.write(self._tail[: self.num_rows - len(self._base)].data)

    def write_ids(self, path: Path) -> None:
        """Write an .npy file; -1 marks an empty row."""
        with path.open("wb") as file:
            np.save(file, self._ids, allow_pickle=False)

    @classmethod
    def read(cls, vectors_path: Path, ids_path: Path, metric: Metric) -> VectorStore:
        """What `write_vectors` and `write_ids` wrote; the vectors stay in their file.

        Raises:
            DataError: the files are not a store's.
        """
        try:
            ids, vectors = _mapped(ids_path, "c"), _mapped(vectors_path, "r")
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{vectors_path.parent}: not a store of vectors: {error}") from error
        if vectors.ndim != 2 or ids.shape != (len(vectors),) or ids.dtype != np.int64:
            raise DataError(
                f"{vectors_path.parent}: got {ids.dtype} ids of shape {ids.shape} for vectors of "
                f"shape {vectors.shape}; expected one int64 each"
            )
        return cls(vectors, ids, metric)

    def _changed(self) -> None:
        self.version += 1
        self._live = None

    def _at(self, rows: Ids) -> Vectors:
        """Float32 vectors of `rows` [m], ascending or not, copied."""
        size = len(self._base)
        if size == self.num_rows:
            return self._base[rows].astype(np.float32, copy=False)
        in_base = rows < size
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        vectors[in_base] = self._base[rows[in_base]]
        vectors[~in_base] = self._tail[rows[~in_base] - size]
        return vectors

    def _pieces(self) -> Iterator[tuple[int, Vectors]]:
        """Contiguous float32 blocks of all rows, each with the row at which it begins; float32
        vectors are not copied."""
        if self.num_rows == 0:
            yield 0, np.empty((0, self.dimension), dtype=np.float32)
        step = _ROWS_PER_BLOCK if self.dtype == "float16" else max(self.num_rows, 1)
        pieces = ((0, self._base), (len(self._base), self._tail))
        for first, piece in pieces:
            size = min(len(piece), self.num_rows - first)
            for begin in range(0, size, step):
                block = piece[begin : min(begin + step, size)]
                yield first + begin, np.ascontiguousarray(block, dtype=np.float32)


def check_ids(ids: Ids, num_vectors: int | None) -> None:
    """Raise ValueError unless `ids` are `num_vectors` (None: any number of) unique int64 of at
    least 0 (-1 pads)."""
    if not isinstance(ids, np.ndarray):
        raise ValueError(f"ids: got {type(ids).__name__}; expected an int64 array [n]")
    if ids.dtype != np.int64 or ids.ndim != 1 or num_vectors not in (None, len(ids)):
        expected = "[n]" if num_vectors is None else f"({num_vectors},)"
        raise ValueError(
            f"ids: got {ids.dtype} of shape {ids.shape}; expected int64 of shape {expected}"
        )
    if len(ids) and int(ids.min()) < 0:
        raise ValueError(f"ids: got {int(ids.min())}; expected at least 0")
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != len(ids):
        raise ValueError(f"ids: got {int(values[counts > 1][0])} twice; expected unique ids")


def _mapped(path: Path, mode: Literal["r", "c"]) -> npt.NDArray[Any]:
    """An .npy file's array, left in the file; "c": changes of it stay in memory."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return array


def _stored(
    vectors: Vectors, metric: Metric, dtype: VectorType
) -> npt.NDArray[np.float32 | np.float16]:
    """A checked copy of `vectors` in the form in which they are kept."""
    prepared = comparable("vectors", vectors, metric)
    if dtype == "float16":
        if len(prepared) and float(np.abs(prepared).max()) > float(np.finfo(np.float16).max):
            raise ValueError(
                "vectors: got a number beyond 65504, which float16 cannot hold; expected "
                "vectors_dtype=float32"
            )
        return prepared.astype(np.float16)
    return prepared.copy() if np.may_share_memory(prepared, vectors) else prepared
