"""Replay keeps a trace's times and lengths exactly, and names what is wrong with a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capibench.corpus.corpus import QUERY_CLASSES, Question
from capibench.errors import DataError
from capibench.load.load import Plan
from capibench.load.streams import LoadStreams
from capibench.load.traces import read_trace

MADE_TRACE = Path(__file__).parent.parent / "fixtures" / "traces" / "azure_made.csv"
# AzureLLMInferenceTrace_conv.csv of github.com/Azure/AzurePublicDataset, where someone has it.
REAL_TRACE = os.environ.get("CAPIBENCH_AZURE_TRACE")
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"

QUESTIONS = [
    Question(f"q{i}", f"question {i}", (), (), QUERY_CLASSES[i % 4], "heldout") for i in range(8)
]


@pytest.fixture
def planned(choice: Callable[..., Any]) -> Callable[..., Plan]:
    def make(path: Path, **changes: object) -> Plan:
        load = choice("load", "replay", **{"path": str(path), "warmup_requests": 0, **changes})
        plan = load.plan(QUESTIONS, LoadStreams.spawn(1, 0))
        assert isinstance(plan, Plan)
        return plan

    return make


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def test_azure_times_are_exact_to_100_ns_and_lengths_are_capped(
    tmp_path: Path, planned: Callable[..., Plan]
) -> None:
    path = written(
        tmp_path,
        HEADER
        + "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000000,396,109\n"
        + "2023-11-17 00:00:02,1,64",
    )
    rows = read_trace(str(path), "azure").rows
    assert [row.arrival_s for row in rows] == [0.0, 1e-7, 2.0000001]
    plan = planned(path)
    assert [request.intended_s for request in plan.measured] == pytest.approx(
        [0.0, 1e-7, 2.0000001], abs=1e-12
    )
    assert [request.max_new_tokens for request in plan.measured] == [44, 64, 64]
    assert plan.facts["capped_token_budgets"] == 1


def test_the_made_trace_scaled_cut_and_warmed(planned: Callable[..., Plan]) -> None:
    whole = planned(MADE_TRACE)
    assert len(whole.measured) == 200
    assert whole.facts["trace_rows"] == 200
    part = planned(MADE_TRACE, start_s=5.0, time_scale=0.5, num_requests=10, warmup_requests=3)
    expected = [t.arrival_s for t in read_trace(str(MADE_TRACE), "azure").rows if t.arrival_s >= 5]
    assert [request.intended_s for request in part.requests] == pytest.approx(
        [(arrival_s - 5.0) * 0.5 for arrival_s in expected[:13]]
    )
    assert (len(part.warmup), len(part.measured)) == (3, 10)
    assert part.window_begin_s == part.warmup[-1].intended_s
    with pytest.raises(DataError, match=r"expected more than the 20 of the warm-up"):
        planned(MADE_TRACE, start_s=1e6, warmup_requests=20)


@pytest.mark.skipif(REAL_TRACE is None, reason="CAPIBENCH_AZURE_TRACE names no trace file")
def test_the_real_azure_trace() -> None:
    assert REAL_TRACE is not None
    rows = read_trace(REAL_TRACE, "azure").rows
    assert len(rows) == 19_366
    assert rows[1].arrival_s == pytest.approx(4.314579, abs=1e-9)
    assert rows[-1].arrival_s == pytest.approx(3501.721937, abs=1e-6)
    assert sorted(row.max_new_tokens or 0 for row in rows)[-1] == 1000


def test_jsonl_says_what_it_knows_and_the_rest_is_drawn(
    tmp_path: Path, planned: Callable[..., Plan]
) -> None:
    lines = [
        {"arrival_s": 2.0, "query": "how do I call open()?", "priority": "critical"},
        {"arrival_s": 0.5, "question_id": "q3", "priority": 5, "max_new_tokens": 9},
        {"arrival_s": 3, "query": "x", "query_class": "long"},
        {"arrival_s": 4.0},
    ]
    path = written(tmp_path, "\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second, third, fourth = planned(path, format="jsonl").measured
    assert (first.intended_s, first.question_id, first.query) == (0.5, "q3", "question 3")
    assert (first.priority, first.max_new_tokens) == (5, 9)
    assert (second.query, second.query_class) == ("how do I call open()?", "coding")
    assert (second.question_id, second.priority) == ("trace:1", 1)
    assert third.query_class == "long"
    assert fourth.question_id in {question.id for question in QUESTIONS}
    with pytest.raises(DataError, match=r"trace:1: question_id: got 'q99'"):
        planned(written(tmp_path, '{"arrival_s": 0, "question_id": "q99"}'), format="jsonl")


@pytest.mark.parametrize(
    ("file_format", "text", "message"),
    [
        ("azure", "", ":1: expected the header"),
        ("azure", "a,b\n", ":1: expected the header"),
        ("azure", HEADER, ": no request in it"),
        ("azure", HEADER + "2023-11-16 18:15:46.68,374\n", ":2: got '2023-11-16 18:15:46.68,374'"),
        ("azure", HEADER + "\n2023-13-16 18:15:46,3,4\n", ":3: TIMESTAMP: month must be in 1..12"),
        ("azure", HEADER + "2023-11-16 18:15:46,3,0\n", ":2: GeneratedTokens: got 0"),
        ("jsonl", "", ": no request in it"),
        ("jsonl", "{", ":1: not JSON"),
        ("jsonl", "[1]", ":1: got '[1]'; expected an object"),
        ("jsonl", "{}", ":1: arrival_s: got None"),
        ("jsonl", '{"arrival_s": true}', ":1: arrival_s: got True"),
        ("jsonl", '{"arrival_s": 0}\n{"arrival_s": -1}', ":2: arrival_s: got -1"),
        ("jsonl", '{"arrival_s": NaN}', ":1: arrival_s: got nan"),
        ("jsonl", '{"arrival_s": 0, "text": "x"}', ":1: unknown key 'text'; known: arrival_s"),
        ("jsonl", '{"arrival_s": 0, "query": " "}', ":1: query: got ' '"),
        (
            "jsonl",
            '{"arrival_s": 0, "query": "x", "question_id": "y"}',
            ":1: query and question_id",
        ),
        ("jsonl", '{"arrival_s": 0, "query_class": "long"}', ":1: query_class: belongs to a query"),
        ("jsonl", '{"arrival_s": 0, "priority": 6}', ":1: priority: got 6; expected one of"),
        ("jsonl", '{"arrival_s": 0, "max_new_tokens": 0}', ":1: max_new_tokens: got 0"),
    ],
)
def test_a_malformed_file_is_named_by_line_and_field(
    tmp_path: Path, file_format: Any, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read_trace(str(path), file_format)
    assert str(raised.value).startswith(f"{path}{message}")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: cannot be read"):
        read_trace(str(tmp_path / "missing"), "azure")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary: cannot be read"):
        read_trace(str(tmp_path / "binary"), "jsonl")
