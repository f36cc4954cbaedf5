"""Facts about documents by which a search can be filtered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.vector_store import check_ids

Value = str | int | float | bool
Condition = Value | Sequence[Value] | Mapping[str, Value]


class Metadata:
    """One value of each field for each id. Knows nothing of vectors: what it selects is handed to
    a search as `Allowed`."""

    def __init__(self, ids: Ids, fields: Mapping[str, Sequence[Value]]) -> None:
        """Raises: ValueError if ids are not unique int64 of at least 0, or a field has not one
        value for each."""
        check_ids(ids, len(ids))
        self._ids = ids.copy()
        self._fields: dict[str, list[Value]] = {}
        for name, values in fields.items():
            if len(values) != len(ids):
                raise ValueError(
                    f"{name}: got {len(values)} values; expected one for each of {len(ids)} ids"
                )
            self._fields[name] = list(values)
        self._columns: dict[str, npt.NDArray[np.object_]] = {}

    @property
    def ids(self) -> Ids:
        return self._ids

    @property
    def fields(self) -> Mapping[str, Sequence[Value]]:
        return self._fields

    def select(self, conditions: Mapping[str, Condition]) -> Allowed:
        """The ids that meet all conditions, one per field: a value (equal), a list of values (any
        of them), or {"at_least": a, "at_most": b} (a range, either end alone too).

        Raises:
            ValueError: an unknown field, or a condition of another form or type.
        """
        meets = np.ones(len(self._ids), dtype=np.bool_)
        for name, condition in conditions.items():
            meets &= self._meets(name, condition)
        return Allowed(self._ids[meets])

    def add(self, ids: Ids, fields: Mapping[str, Sequence[Value]]) -> None:
        """Take in further documents, with the same fields.

        Raises:
            ValueError: as the constructor, other fields, or an id that is here. Nothing is added.
        """
        added = Metadata(ids, fields)
        if added._fields.keys() != self._fields.keys():
            raise ValueError(
                f"fields: got {', '.join(sorted(fields))}; "
                f"expected {', '.join(sorted(self._fields))}"
            )
        present = np.intersect1d(ids, self._ids)
        if len(present):
            raise ValueError(f"ids: got {int(present[0])}, which has metadata already")
        self._ids = np.concatenate([self._ids, ids])
        for name, values in added._fields.items():
            self._fields[name] += values
        self._columns.clear()

    def remove(self, ids: Ids) -> None:
        """Forget documents.

        Raises:
            ValueError: an id that is not here. Nothing is removed.
        """
        unknown = np.setdiff1d(ids, self._ids)
        if len(unknown):
            raise ValueError(f"ids: got {int(unknown[0])}, which has no metadata")
        kept = np.flatnonzero(~np.isin(self._ids, ids))
        self._ids = self._ids[kept]
        for name, values in self._fields.items():
            self._fields[name] = [values[i] for i in kept]
        self._columns.clear()

    def write(self, path: Path) -> None:
        """Write one JSON file."""
        document = {"ids": self._ids.tolist(), "fields": self._fields}
        path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Metadata:
        """What `write` wrote.

        Raises:
            DataError: the file is not such a one.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls(np.array(document["ids"], dtype=np.int64), document["fields"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no metadata: {error}") from error

    def _meets(self, name: str, condition: Condition) -> npt.NDArray[np.bool_]:
        if name not in self._fields:
            raise ValueError(
                f"filter: got field {name!r}; expected one of {', '.join(sorted(self._fields))}"
            )
        column = self._column(name)
        if isinstance(condition, Mapping):
            return self._in_range(name, column, condition)
        wanted = [condition] if isinstance(condition, str | int | float | bool) else list(condition)
        meets = np.zeros(len(column), dtype=np.bool_)
        for value in wanted:
            meets |= np.array(column == value, dtype=np.bool_)
        return meets

    def _in_range(
        self, name: str, column: npt.NDArray[np.object_], condition: Mapping[str, Value]
    ) -> npt.NDArray[np.bool_]:
        if not condition or condition.keys() - {"at_least", "at_most"}:
            raise ValueError(
                f"filter.{name}: got {dict(condition)}; expected at_least, at_most or both"
            )
        meets = np.ones(len(column), dtype=np.bool_)
        try:
            if "at_least" in condition:
                meets &= np.array(column >= condition["at_least"], dtype=np.bool_)
            if "at_most" in condition:
                meets &= np.array(column <= condition["at_most"], dtype=np.bool_)
        except TypeError as error:
            raise ValueError(f"filter.{name}: got {dict(condition)}: {error}") from error
        return meets

    def _column(self, name: str) -> npt.NDArray[np.object_]:
        if name not in self._columns:
            column = np.empty(len(self._ids), dtype=np.object_)
            column[:] = self._fields[name]
            self._columns[name] = column
        return self._columns[name]
