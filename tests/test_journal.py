"""Finished rows outlive the process that made them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capibench.journal import SCHEMA, Journal, recover
from capibench.records import RequestRecord


def record(number: int, answer: str) -> RequestRecord:
    values: dict[str, object] = {
        field.name: 0.5 if str(field.type).startswith("float") else None
        for field in fields(RequestRecord)
    }
    values |= {"request_id": number, "answer": answer, "retrieved_ids": ("p", "q"), "priority": 3}
    return RequestRecord(**values)  # type: ignore[arg-type]


# Line separators of Unicode are text, not the end of a journal's line.
ANSWERS = ["plain", "two\nlines", "odd \u2028 separators \x85 here", "", "ünïcode"]


def test_a_finished_run_leaves_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in (2, 0, 1):
            journal.append(record(number, ANSWERS[number]))
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["request_id"].to_pylist() == [0, 1, 2]
    assert table["answer"].to_pylist() == ANSWERS[:3]
    assert [path.name for path in tmp_path.iterdir()] == ["records.parquet"]


def test_an_exception_keeps_the_rows(tmp_path: Path) -> None:
    def run() -> None:
        with Journal(tmp_path) as journal:
            journal.append(record(0, "kept"))
            raise RuntimeError("the engine fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        run()
    assert pq.read_table(tmp_path / "records.parquet")["answer"].to_pylist() == ["kept"]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_recovery_after_a_death_at_any_byte(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path).__enter__()
    for number, answer in enumerate(ANSWERS):
        journal.append(record(number, answer))
    journal._file.close()  # the process is gone; what it wrote is not
    path = tmp_path / "journal.jsonl"
    written = path.read_bytes()
    path.write_bytes(written[: len(written) - cut])
    expected = ANSWERS if cut == 0 else ANSWERS[:-1]
    assert recover(tmp_path) == len(expected)
    assert pq.read_table(tmp_path / "records.parquet")["answer"].to_pylist() == expected
    assert recover(tmp_path) == 0
