"""The user's own files: read as they are meant, refused at the line that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capibench.corpus.jsonl import Jsonl
from capibench.errors import DataError

PASSAGES = [
    {"id": "p1", "text": "Capibaras swim\u2028well.", "title": "Swimming", "group": "animals"},
    {"id": "p2", "text": "Llamas do not."},
]
QUESTIONS = [
    {"text": "Who swims?", "relevant": ["p1"], "answers": ["Capibaras"]},
    {"text": "Who does not?", "relevant": ["p2", "p2"], "id": "dry", "split": "train"},
]


def written(folder: Path, passages: object = PASSAGES, questions: object = QUESTIONS) -> Jsonl:
    paths = []
    for name, rows in (("passages", passages), ("questions", questions)):
        path = folder / f"{name}.jsonl"
        assert isinstance(rows, list)
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        paths.append(str(path))
    return Jsonl(passages_path=paths[0], questions_path=paths[1], heldout_fraction=1.0)


def test_both_files_are_read(tmp_path: Path) -> None:
    corpus = written(tmp_path).load()
    first, second = corpus.passages
    assert (first.text, first.title, first.group) == (
        "Capibaras swim\u2028well.",
        "Swimming",
        "animals",
    )
    assert (second.title, second.group) == ("", "p2")
    swims, dry = corpus.questions
    assert (swims.id, swims.relevant, swims.answers) == ("q1", ("p1",), ("Capibaras",))
    assert (swims.query_class, swims.split) == ("short", "heldout")
    assert (dry.id, dry.relevant, dry.answers, dry.split) == ("dry", ("p2",), (), "train")
    assert corpus.manifest["num_questions_heldout"] == 1


def test_the_source_key_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = written(tmp_path / "a"), written(tmp_path / "b")
    assert here.source_key() == there.source_key()
    assert here.load().content_hash == there.load().content_hash
    changed = written(tmp_path / "b", questions=QUESTIONS[:1])
    assert here.source_key() != changed.source_key()
    assert here.load().content_hash != changed.load().content_hash


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("passages", "{oops", "passages.jsonl, line 1: not JSON"),
        ("passages", "[1]", r"passages.jsonl, line 1: got \[1\]; expected a JSON object"),
        ("passages", {"text": "a"}, "passages.jsonl, line 1, field 'id': missing"),
        ("passages", {"id": 7, "text": "a"}, "line 1, field 'id': got 7; expected a text"),
        ("passages", {"id": "a", "text": " "}, "line 1, field 'text': got ' '"),
        ("passages", {"id": "a", "txt": "b"}, "line 1, field 'txt': unknown; known: group, id"),
        ("questions", {"text": "a?"}, "questions.jsonl, line 1, field 'relevant': missing"),
        ("questions", {"text": "a?", "relevant": []}, "field 'relevant': got an empty list"),
        ("questions", {"text": "a?", "relevant": "p1"}, "'relevant': got 'p1'; expected a list"),
        ("questions", {"text": "a?", "relevant": ["p9"]}, "'p9' is the id of no passage"),
        (
            "questions",
            {"text": "a?", "relevant": ["p1"], "split": "test"},
            "field 'split': got 'test'; expected train or heldout",
        ),
        (
            "questions",
            {"text": "a?", "relevant": ["p1"], "answers": [None]},
            r"field 'answers': got \[None\]",
        ),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, file: str, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        written(tmp_path, **{file: [row]}).load()


@pytest.mark.parametrize("file", ["passages", "questions"])
def test_ids_are_unique(tmp_path: Path, file: str) -> None:
    row = PASSAGES[0] if file == "passages" else QUESTIONS[1]
    with pytest.raises(DataError, match=f"{file}.jsonl, line 3, field 'id': '.*' was used"):
        written(tmp_path, **{file: [*(PASSAGES if file == "passages" else QUESTIONS), row]}).load()


@pytest.mark.parametrize("file", ["passages", "questions"])
def test_an_empty_file_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(DataError, match=f"{file}.jsonl: no lines"):
        written(tmp_path, **{file: []}).load()


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    corpus = Jsonl(str(tmp_path / "none.jsonl"), str(tmp_path / "none.jsonl"), 1.0)
    with pytest.raises(DataError, match=r"corpus.passages_path: cannot read .*none.jsonl"):
        corpus.load()


def test_the_choice_needs_its_paths_and_a_fraction(choice: Callable[..., Any]) -> None:
    paths = {"passages_path": "p", "questions_path": "q"}
    assert choice("corpus", "jsonl", **paths).heldout_fraction == 1.0
    with pytest.raises(ValueError, match=r"corpus\.heldout_fraction: got 2"):
        choice("corpus", "jsonl", **paths, heldout_fraction=2)
