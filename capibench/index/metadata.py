"""Facts about documents by which a search can be filtered."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.vector_store import check_ids

Value = str | int | float | bool
Condition = Value | Collection[Value] | Mapping[str, Value]
_TEXT, _NUMBER, _TRUTH = "text", "a finite number", "true or false"
_ENDS = ("at_least", "at_most")


class Metadata:
    """One value of each field for each id. Knows nothing of vectors: what it selects is handed to
    a search as `Allowed`."""

    def __init__(self, ids: Ids, fields: Mapping[str, Sequence[Value]]) -> None:
        """Values may be NumPy's too, and are kept as Python's.

        Raises:
            ValueError: ids are not unique int64 of at least 0, or a field has not one value for
                each, or a value that is no text, finite number, true or false.
        """
        check_ids(ids, None)
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"metadata: got {type(fields).__name__}; expected a mapping from each field to its "
                "values"
            )
        self._ids = ids.copy()
        self._fields: dict[str, list[Value]] = {}
        for name, values in fields.items():
            if not isinstance(name, str):
                raise ValueError(f"metadata: got field {name!r}; expected text")
            self._fields[name] = checked_values(f"metadata.{name}", values, len(ids))
        self._columns: dict[str, tuple[npt.NDArray[np.object_], frozenset[str]]] = {}

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
            ValueError: an unknown field, a condition of another form, or a value of a type that
                the field does not have (which could meet nothing).
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
                f"metadata: got fields {', '.join(sorted(fields))}; "
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
            known = ", ".join(sorted(self._fields)) or "none, since the metadata has no fields"
            raise ValueError(f"filter: got field {name!r}; expected one of {known}")
        key, (column, kinds) = f"filter.{name}", self._column(name)
        if isinstance(condition, Mapping):
            return _in_range(key, column, kinds, condition)
        value = _plain(condition)
        if kind_of(value) is None and _is_list(condition):
            wanted = [_plain(item) for item in condition]  # type: ignore[union-attr]
            for item in wanted:
                _check_kind(key, item, kinds)
            among = frozenset(wanted)
            return np.fromiter((held in among for held in column), np.bool_, len(column))
        _check_kind(key, value, kinds)
        return np.array(column == value, dtype=np.bool_)

    def _column(self, name: str) -> tuple[npt.NDArray[np.object_], frozenset[str]]:
        """A field's values, and the kinds of these."""
        if name not in self._columns:
            values = self._fields[name]
            column = np.empty(len(values), dtype=np.object_)
            column[:] = values
            kinds = {type(value): str(kind_of(value)) for value in values}
            self._columns[name] = column, frozenset(kinds.values())
        return self._columns[name]


def checked_values(key: str, values: Any, num_ids: int) -> list[Value]:
    """`values` as Python's own; ValueError unless there is one for each id, of a kind that can be
    kept."""
    if not _is_list(values) or isinstance(values, Set):
        raise ValueError(f"{key}: got {type(values).__name__}; expected a list of values")
    if len(values) != num_ids:
        raise ValueError(f"{key}: got {len(values)} values; expected one for each of {num_ids} ids")
    plain = values.tolist() if isinstance(values, np.ndarray) else [_plain(v) for v in values]
    for i, value in enumerate(plain):
        if kind_of(value) is None:
            raise ValueError(f"{key}[{i}]: got {value!r}; expected {_TEXT}, {_NUMBER}, {_TRUTH}")
    return plain


def kind_of(value: Any) -> str | None:
    """What can be kept in JSON and compared with its like; None for anything else."""
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, bool):
        return _TRUTH
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return _NUMBER
    return None


def _in_range(
    key: str,
    column: npt.NDArray[np.object_],
    kinds: frozenset[str],
    condition: Mapping[str, Value],
) -> npt.NDArray[np.bool_]:
    if not condition or set(condition) - set(_ENDS):
        raise ValueError(f"{key}: got {dict(condition)}; expected at_least, at_most or both")
    ends = {name: _plain(value) for name, value in condition.items()}
    for name, end in ends.items():
        _check_kind(f"{key}.{name}", end, kinds)
        if kinds & {_TRUTH} or len(kinds) > 1:
            raise ValueError(
                f"{key}.{name}: got {end!r}; expected no range, since the field's values are "
                f"{_listed(kinds)}"
            )
    meets = np.ones(len(column), dtype=np.bool_)
    if "at_least" in ends:
        meets &= np.array(column >= ends["at_least"], dtype=np.bool_)
    if "at_most" in ends:
        meets &= np.array(column <= ends["at_most"], dtype=np.bool_)
    return meets


def _check_kind(key: str, value: Any, kinds: frozenset[str]) -> None:
    """Raise ValueError where no value of the field could be compared with this one."""
    kind = kind_of(value)
    if kind is None or (kinds and kind not in kinds):
        raise ValueError(
            f"{key}: got {value!r}; expected {_listed(kinds or {_TEXT, _NUMBER, _TRUTH})}"
        )


def _listed(kinds: Collection[str]) -> str:
    return ", ".join(sorted(kinds))


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value
