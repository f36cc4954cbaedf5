"""Rows of a study in a CSV file, that come back as they were written. Pure but for the files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
_WORDS: dict[str, Any] = {"": None, "True": True, "False": False}


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One line a row, the columns of all of them; no file without rows."""
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> Rows:
    """Numbers, booleans and words as they were; what a row has not is None. No file: nothing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
