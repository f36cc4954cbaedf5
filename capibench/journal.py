"""Rows survive the process that made them: each finished row goes to a journal at once.

After the run the journal becomes `records.parquet`. A killed process leaves the journal, from
which `recover` makes the same file; a half-written last line is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capibench.records import RECORD_COLUMNS, RequestRecord

_TEXT = {
    "phase", "question_id", "query_class", "status", "error", "served_by", "result_cache",
    "embedding_cache", "output_cache", "batch_reason", "answer",
}  # fmt: skip
_WHOLE = {
    "request_id", "priority", "batch_id", "batch_size", "prompt_tokens", "output_tokens",
    "max_new_tokens",
}  # fmt: skip


def _type_of(column: str) -> pa.DataType:
    if column == "retrieved_ids":
        return pa.list_(pa.string())
    if column in _TEXT:
        return pa.string()
    return pa.int64() if column in _WHOLE else pa.float64()


SCHEMA = pa.schema([(column, _type_of(column)) for column in RECORD_COLUMNS])


class Journal:
    """Appends one line per finished row; buffered by the operating system, so that it survives
    the death of the process (not of the machine)."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        self._file = _path(self._run_dir).open("a", encoding="utf-8", buffering=1)
        return self

    def append(self, record: RequestRecord) -> None:
        row = record.as_dict()
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._rows.append(row)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        _write(self._rows, self._run_dir)
        _path(self._run_dir).unlink()


def recover(run_dir: Path) -> int:
    """Make `records.parquet` from what a dead process left behind; returns the number of rows."""
    journal = _path(run_dir)
    if not journal.is_file():
        return 0
    text = journal.read_text(encoding="utf-8", errors="replace")
    # What follows the last line end was never finished.
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    _write(rows, run_dir)
    journal.unlink()
    return len(rows)


def _path(run_dir: Path) -> Path:
    return run_dir / "journal.jsonl"


def _write(rows: Iterable[Mapping[str, Any]], run_dir: Path) -> None:
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["request_id"]), schema=SCHEMA)
    partial = run_dir / "records.parquet.partial"
    pq.write_table(table, partial, compression="zstd")
    partial.replace(run_dir / "records.parquet")
