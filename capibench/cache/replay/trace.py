"""A stream of keys as the replay reads it: who was asked for, how large it is, what it costs.

Files: CSV with a header, JSON lines, or Parquet; one access per row. A column of lists (such as the
prefix blocks of a request) is one access per item; a nested field is named with dots. Times are
seconds or ISO 8601 timestamps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from capibench.errors import DataError

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
_KEY_BYTES = 16
_FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Columns:
    """Which column of a file is what; None: the one that is named like the role, if any."""

    key: str | None
    size: str | None
    cost_s: str | None
    time: str | None
    ttl_s: str | None


@dataclass(frozen=True, eq=False)
class KeyTrace:
    """All arrays have one item per access, in order of time."""

    name: str
    keys: tuple[bytes, ...]  # of each distinct key
    ids: Whole  # which of `keys` is asked for
    sizes: Whole | None  # bytes; None: every entry counts as 1
    costs_s: Floats | None  # of recomputing it; None: unknown, and equal to the policies
    times_s: Floats  # not falling; the position where the file has no time
    ttls_s: Floats | None  # None: nothing goes stale
    skips: Whole | None  # as many accesses after this one do not happen when it hits; None: none
    left_out: str | None  # which accesses of the source are not in it, and why
    num_warmup: int  # so many at its begin were a run's warm-up, and not counted there

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_keys(self) -> int:
        return len(self.keys)

    @property
    def working_set_bytes(self) -> int:
        """What a cache would hold that kept every key, with the size of its first access."""
        if self.sizes is None:
            return self.num_keys
        _, first = np.unique(self.ids, return_index=True)
        return int(self.sizes[first].sum())


def make_trace(
    name: str,
    key_names: Sequence[Any],
    *,
    sizes: Whole | None = None,
    costs_s: Floats | None = None,
    times_s: Floats | None = None,
    ttls_s: Floats | None = None,
    skips: Whole | None = None,
    left_out: str | None = None,
    num_warmup: int = 0,
) -> KeyTrace:
    """A trace of checked columns; equal names (as text) are one key."""
    ids, names = pd.factorize(np.asarray([str(key) for key in key_names], dtype=object))
    digests = tuple(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
        for name in names
    )
    return KeyTrace(
        name=name,
        keys=digests,
        ids=ids.astype(np.int64),
        sizes=sizes,
        costs_s=costs_s,
        times_s=np.arange(len(ids), dtype=np.float64) if times_s is None else times_s,
        ttls_s=ttls_s,
        skips=skips,
        left_out=left_out,
        num_warmup=num_warmup,
    )


def read_key_trace(path: Path, columns: Columns) -> KeyTrace:
    """Read the file at `path`.

    Raises:
        DataError: naming file, row, column and what was expected.
    """
    if path.suffix not in _FORMATS:
        expected = ", ".join(_FORMATS)
        raise DataError(f"{path}: got {path.suffix or 'no suffix'}; expected {expected}")
    try:
        frame, names = _read(path, columns)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if frame.empty:
        raise DataError(f"{path}: no access in it")
    missing = (frame["key"].isna() | (frame["key"].astype(str) == "")).to_numpy()
    if missing.any():
        row = frame.index[int(np.argmax(missing))]
        raise DataError(f"{path}: row {row}: {names['key']}: got nothing; expected a key")
    if frame["key"].map(lambda key: isinstance(key, list | tuple | np.ndarray)).any():
        frame = pd.DataFrame(frame.explode("key").dropna(subset=["key"]))
        if frame.empty:
            raise DataError(f"{path}: {names['key']}: got empty lists only; expected keys")
    nested = frame["key"].map(lambda key: isinstance(key, Mapping | list | tuple | np.ndarray))
    if nested.any():
        raise DataError(_no_key(path, frame["key"][nested], names["key"]))
    numbers = {role: _numbers(path, frame[role], role, names) for role in names if role != "key"}
    sizes = numbers.get("size")
    return make_trace(
        path.name,
        frame["key"].tolist(),
        sizes=None if sizes is None else sizes.astype(np.int64),
        costs_s=numbers.get("cost_s"),
        times_s=numbers.get("time"),
        ttls_s=numbers.get("ttl_s"),
    )


def _no_key(path: Path, values: pd.Series[Any], name: str) -> str:
    """What is wrong with the first of `values`, which are objects, or lists within lists."""
    value = values.iloc[0]
    got = str(value)
    problem = f"got {got if len(got) <= 80 else got[:77] + '...'}; expected a key or a list of keys"
    if isinstance(value, Mapping) and value:
        problem += ", such as " + ", ".join(f"--key {name}.{field}" for field in value)
    return f"{path}: row {values.index[0]}: {name}: {problem}"


def _read(path: Path, columns: Columns) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns by role, and their names in the file; the index counts its rows from 1."""
    if path.suffix == ".jsonl":
        frame = _json_lines(path, [name for name in vars(columns).values() if name is not None])
    else:
        try:
            frame = _comma_separated(path) if path.suffix == ".csv" else pd.read_parquet(path)
        except (ValueError, pd.errors.ParserError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        frame.index = pd.RangeIndex(1, len(frame) + 1)
    names = {
        role: name or role
        for role, name in vars(columns).items()
        if name is not None or role in frame.columns or role == "key"
    }
    for role, name in names.items():
        if name not in frame.columns:
            found = ", ".join(map(str, frame.columns)) or "none"
            raise DataError(f"{path}: no column {name!r} (for {role}); found {found}")
    return pd.DataFrame({role: frame[name] for role, name in names.items()}), names


def _comma_separated(path: Path) -> pd.DataFrame:
    """All as texts."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    if not isinstance(frame.index, pd.RangeIndex):  # where pandas puts what has no name
        raise ValueError("its rows have more fields than its header; expected as many")
    return frame


def _json_lines(path: Path, nested: Sequence[str]) -> pd.DataFrame:
    """One object a line; fields that are named with dots become columns of that name."""
    rows, lines = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: got {line[:80]!r}; expected an object")
        for name in nested:
            if name not in row and "." in name:
                row[name] = _field(row, name)
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(rows, index=pd.Index(lines), dtype=object)


def _field(row: Any, name: str) -> Any:
    for part in name.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


_MOST_BYTES = 1 << 62  # of all accesses together, so that no sum of some overflows
_RULES: dict[str, tuple[Callable[[Floats], npt.NDArray[np.bool_]], str]] = {
    "size": (
        lambda n: (n < 1) | (n != np.floor(n)) | (np.cumsum(n) > _MOST_BYTES),
        "a whole number of bytes, at least 1, and up to this row no more than 2**62 in all",
    ),
    "cost_s": (lambda n: n < 0, "seconds, at least 0"),
    "ttl_s": (lambda n: n <= 0, "seconds above 0"),
    "time": (
        lambda n: np.diff(n, prepend=-np.inf) < 0,
        "seconds or an ISO 8601 timestamp, no earlier than the row before it",
    ),
}


def _numbers(path: Path, values: Any, role: str, names: Mapping[str, str]) -> Floats:
    numbers = _seconds(values) if role == "time" else _plain_numbers(values)
    is_wrong, expected = _RULES[role]
    with np.errstate(invalid="ignore"):
        wrong = ~np.isfinite(numbers) | is_wrong(numbers)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DataError(
            f"{path}: row {values.index[place]}: {names[role]}: got {values.iloc[place]!r}; "
            f"expected {expected}"
        )
    return numbers


def _plain_numbers(values: Any) -> Floats:
    """Not a number where there is none; true and false are none."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return np.full(len(values), np.nan)
    numbers = np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)
    is_flag = values.map(lambda value: isinstance(value, bool | np.bool_)).to_numpy(dtype=bool)
    return np.where(is_flag, np.nan, numbers)


def _seconds(values: Any) -> Floats:
    """Of numbers, or since the first of several timestamps, which are UTC where they do not say."""
    numbers = _plain_numbers(values)
    if not np.isnan(numbers).all():
        return numbers
    times = pd.to_datetime(values, format="ISO8601", utc=True, errors="coerce")
    return np.asarray((times - times.iloc[0]).dt.total_seconds(), dtype=np.float64)
