"""Reading recorded traffic. Beside the driver, this is the load room's one impure module.

Two formats:
    azure   CSV of the Azure LLM inference traces (Patel et al., Splitwise, ISCA 2024), columns
            TIMESTAMP,ContextTokens,GeneratedTokens; timestamps with up to 7 digits of fraction.
    jsonl   one object a line: "arrival_s", and optionally "query" (text) or "question_id" (of the
            corpus), "query_class" (of the text), "priority" (name or 1 to 5), "max_new_tokens".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from capibench.errors import DataError
from capibench.records import RequestPriority

_AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
_AZURE_ROW = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(\+00:00)?,(\d+),(\d+)", re.ASCII
)
_EPOCH = datetime.fromisoformat("2000-01-01 00:00:00")  # naive, as the rows; only differences count
_JSONL_KEYS = ("arrival_s", "query", "question_id", "query_class", "priority", "max_new_tokens")
_PRIORITIES: dict[str | int, int] = {
    **{priority.name.lower(): int(priority) for priority in RequestPriority},
    **{int(priority): int(priority) for priority in RequestPriority},
}


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request; what the trace does not say is None."""

    arrival_s: float  # azure: after the earliest row; jsonl: as written
    line: int
    query: str | None
    question_id: str | None
    query_class: str | None
    priority: int | None
    max_new_tokens: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole file, in order of arrival (equal times: in order of lines)."""

    rows: tuple[TraceRow, ...]
    content_hash: str  # blake2b of the file's bytes


def read_trace(path: str, file_format: Literal["azure", "jsonl"]) -> Trace:
    """Read the file at `path`.

    Raises:
        DataError: naming file, line, field and what was expected.
    """
    try:
        content = Path(path).read_bytes()
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"load.path: {path}: cannot be read: {error}") from error
    parse = _azure_rows if file_format == "azure" else _jsonl_rows
    rows = sorted(parse(path, lines), key=lambda row: row.arrival_s)
    if not rows:
        raise DataError(f"{path}: no request in it")
    return Trace(tuple(rows), hashlib.blake2b(content, digest_size=16).hexdigest())


def _azure_rows(path: str, lines: list[str]) -> Iterator[TraceRow]:
    if not lines or lines[0].removeprefix("\ufeff").strip() != _AZURE_HEADER:
        raise DataError(f"{path}:1: expected the header {_AZURE_HEADER}")
    recorded: list[tuple[int, int, int]] = []  # nanoseconds, line, generated tokens
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        matched = _AZURE_ROW.fullmatch(line.strip())
        if matched is None:
            raise DataError(
                f"{path}:{number}: got {line[:80]!r}; "
                "expected YYYY-MM-DD HH:MM:SS.fffffff,ContextTokens,GeneratedTokens"
            )
        second, fraction, _, _, generated = matched.groups()
        try:
            at = datetime.fromisoformat(second)
        except ValueError as error:
            raise DataError(f"{path}:{number}: TIMESTAMP: {error}") from error
        if int(generated) < 1:
            raise DataError(f"{path}:{number}: GeneratedTokens: got 0; expected at least 1")
        at_ns = (at - _EPOCH) // timedelta(microseconds=1) * 1000
        recorded.append((at_ns + int((fraction or "0").ljust(9, "0")), number, int(generated)))
    zero_ns = min((at_ns for at_ns, _, _ in recorded), default=0)
    for at_ns, number, generated_tokens in recorded:
        yield TraceRow(
            arrival_s=(at_ns - zero_ns) / 1e9,
            line=number,
            query=None,
            question_id=None,
            query_class=None,
            priority=None,
            max_new_tokens=generated_tokens,
        )


def _jsonl_rows(path: str, lines: list[str]) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: got {line[:80]!r}; expected an object")
        for key in row:
            if key not in _JSONL_KEYS:
                raise DataError(f"{where}: unknown key {key!r}; known: {', '.join(_JSONL_KEYS)}")
        if "query" in row and "question_id" in row:
            raise DataError(f"{where}: query and question_id; expected one of them at most")
        if "query_class" in row and "query" not in row:
            raise DataError(f"{where}: query_class: belongs to a query; expected both")
        yield TraceRow(
            arrival_s=_arrival_s(row, where),
            line=number,
            query=_text(row, "query", where),
            question_id=_text(row, "question_id", where),
            query_class=_text(row, "query_class", where),
            priority=_priority(row, where),
            max_new_tokens=_tokens(row, where),
        )


def _arrival_s(row: dict[str, Any], where: str) -> float:
    value = row.get("arrival_s")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{where}: arrival_s: got {value!r}; expected seconds, at least 0")
    return float(value)


def _text(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if key in row and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{where}: {key}: got {value!r}; expected a text")
    return value


def _priority(row: dict[str, Any], where: str) -> int | None:
    if "priority" not in row:
        return None
    value = row["priority"]
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in _PRIORITIES:
        known = ", ".join(str(name) for name in _PRIORITIES)
        raise DataError(f"{where}: priority: got {value!r}; expected one of {known}")
    return _PRIORITIES[value]


def _tokens(row: dict[str, Any], where: str) -> int | None:
    if "max_new_tokens" not in row:
        return None
    value = row["max_new_tokens"]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{where}: max_new_tokens: got {value!r}; expected at least 1")
    return value
