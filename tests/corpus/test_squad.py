"""SQuAD-format files: a made one for the rules, a real one where the machine has it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capibench.corpus.squad import Squad
from capibench.errors import DataError


def qa(id_: str, question: str, *answers: str) -> dict[str, object]:
    found = [{"text": a, "answer_start": 0} for a in answers]
    return {"id": id_, "question": question, "answers": found}


def document(*articles: dict[str, object]) -> dict[str, object]:
    return {"version": "1.1", "data": list(articles)}


def article(title: str, context: str, *qas: object) -> dict[str, object]:
    return {"title": title, "paragraphs": [{"context": context, "qas": list(qas)}]}


MADE = document(
    article(
        "Rodents",
        "The capibara swims.",
        qa("1", "Who swims?", "capibara", "The capibara", "capibara"),
        {"id": "2", "question": "Who flies?", "answers": [], "is_impossible": True},
    ),
    article("Camelids", "The llama spits.", qa("3", "Who spits?", "llama")),
    article("Camelids", "The llama spits.", qa("4", "What does the llama do?", "spits")),
)


def squad(folder: Path, content: object, heldout_fraction: float = 1.0) -> Squad:
    path = folder / "made.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return Squad(str(path), heldout_fraction)


def test_paragraphs_questions_and_answers_are_read(tmp_path: Path) -> None:
    choice = squad(tmp_path, MADE)
    corpus = choice.load()
    swims, spits = corpus.passages
    assert (swims.text, swims.title, swims.group) == ("The capibara swims.", "Rodents", "Rodents")
    assert [(q.id, q.relevant, q.answers) for q in corpus.questions] == [
        ("1", (swims.id,), ("capibara", "The capibara")),
        ("3", (spits.id,), ("llama",)),
        ("4", (spits.id,), ("spits",)),
    ]
    assert {q.split for q in corpus.questions} == {"heldout"}
    assert corpus.manifest["num_unanswerable_left_out"] == 1
    assert choice.source_key() == squad(tmp_path, MADE).source_key()


def test_a_fraction_keeps_articles_whole(tmp_path: Path) -> None:
    corpus = squad(tmp_path, MADE, heldout_fraction=0.0).load()
    assert len(corpus.questions_in("train")) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "made.json: not JSON"),
        ([], "expected a JSON object with the field 'data'"),
        ({}, "field data: got None; expected a list"),
        ({"data": [3]}, r"field data\[0\]: got 3; expected a JSON object"),
        (document({"title": "a"}), r"field data\[0\].paragraphs: got None"),
        (document(article("a", "")), r"field data\[0\].paragraphs\[0\].context: got ''"),
        (document(article("a", "b", {"id": "1"})), r"paragraphs\[0\].qas\[0\].answers: got None"),
        (document(article("a", "b", qa("", "c?", "d"))), r"qas\[0\].id: got ''"),
        (document(article("a", "b", qa("1", "c?", ""))), r"qas\[0\].answers\[0\].text: got ''"),
        (document(article("a", "b", *[qa("1", "c?", "d")] * 2)), r"qas\[1\].id: '1' was used"),
        (document(article("a", "b")), "no question with an answer"),
    ],
)
def test_a_malformed_file_is_refused_at_its_place(
    tmp_path: Path, content: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        squad(tmp_path, content).load()


def test_impossible_values_are_refused_by_name(choice: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"corpus\.heldout_fraction: got -1"):
        choice("corpus", "squad", path="a.json", heldout_fraction=-1)


def test_a_real_file_is_read_whole() -> None:
    path = os.environ.get("CAPIBENCH_TEST_XQUAD")
    if path is None or not Path(path).is_file():
        pytest.skip("set CAPIBENCH_TEST_XQUAD to XQuAD's xquad.en.json")
    corpus = Squad(path, 1.0).load()
    assert len(corpus.passages) == 240
    assert len(corpus.questions_in("heldout")) == 1190
    text_of = {p.id: p.text for p in corpus.passages}
    assert all(q.answers[0] in text_of[q.relevant[0]] for q in corpus.questions)
