"""The user's own text and questions, because only their own corpus decides what they should run.

Two files of JSON lines:

    passages:  {"id": "p1", "text": "...", "title": "optional", "group": "optional"}
    questions: {"text": "...", "relevant": ["p1"], "answers": ["optional"], "id": "optional",
                "split": "optional, train or heldout"}

A group is what the train/held-out split keeps together (a document, say); it is the passage's id
where none is given. Relevance must be known, or retrieval could not be scored. The first line
that is wrong stops the reading, with file, line and field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capibench.corpus.corpus import (
    SPLITS,
    Corpus,
    Passage,
    Question,
    classify_query,
    hash_content,
    split_of,
)
from capibench.errors import DataError

_PASSAGE_FIELDS = frozenset({"id", "text", "title", "group"})
_QUESTION_FIELDS = frozenset({"id", "text", "relevant", "answers", "split"})


@dataclass
class Jsonl:
    """The corpus choice for the user's own files."""

    passages_path: str
    questions_path: str
    heldout_fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.heldout_fraction <= 1.0:
            raise ValueError(
                f"heldout_fraction: got {self.heldout_fraction}; expected a number from 0 to 1"
            )

    def source_key(self) -> dict[str, object]:
        """The files by content, so that an edited file is a new corpus and a moved one is not."""
        return {
            "passages": hash_file(self.passages_path, "corpus.passages_path"),
            "questions": hash_file(self.questions_path, "corpus.questions_path"),
        }

    def load(self) -> Corpus:
        """Read and check both files."""
        passages = self._passages()
        group_of = {p.id: p.group for p in passages}
        questions = self._questions(group_of)
        content_hash = hash_content(passages, questions)
        return Corpus(
            name="jsonl",
            passages=passages,
            questions=questions,
            content_hash=content_hash,
            manifest={
                "source": "JSON lines",
                "passages_file": Path(self.passages_path).name,
                "questions_file": Path(self.questions_path).name,
                "num_passages": len(passages),
                "num_questions": len(questions),
                "num_questions_heldout": sum(q.split == "heldout" for q in questions),
                "content_hash": content_hash,
            },
        )

    def _passages(self) -> tuple[Passage, ...]:
        passages: dict[str, Passage] = {}
        for row in _rows(self.passages_path, "corpus.passages_path", _PASSAGE_FIELDS):
            id_ = row.text("id")
            if id_ in passages:
                raise row.error("id", f"{id_!r} was used on an earlier line; expected unique ids")
            passages[id_] = Passage(
                id=id_,
                text=row.text("text"),
                title=row.optional_text("title", ""),
                group=row.optional_text("group", id_),
            )
        if not passages:
            raise DataError(f"{self.passages_path}: no lines; expected at least one passage")
        return tuple(passages.values())

    def _questions(self, group_of: dict[str, str]) -> tuple[Question, ...]:
        questions: dict[str, Question] = {}
        for row in _rows(self.questions_path, "corpus.questions_path", _QUESTION_FIELDS):
            text = row.text("text")
            relevant = row.texts("relevant")
            for passage_id in relevant:
                if passage_id not in group_of:
                    raise row.error("relevant", f"{passage_id!r} is the id of no passage")
            if not relevant:
                raise row.error("relevant", "got an empty list; expected at least one passage id")
            split = row.optional_text(
                "split", split_of(group_of[relevant[0]], self.heldout_fraction)
            )
            if split not in SPLITS:
                raise row.error("split", f"got {split!r}; expected train or heldout")
            id_ = row.optional_text("id", f"q{row.line}")
            if id_ in questions:
                raise row.error("id", f"{id_!r} was used on an earlier line; expected unique ids")
            questions[id_] = Question(
                id=id_,
                text=text,
                relevant=relevant,
                answers=row.texts("answers") if "answers" in row.values else (),
                query_class=classify_query(text),
                split=split,
            )
        if not questions:
            raise DataError(f"{self.questions_path}: no lines; expected at least one question")
        return tuple(questions.values())


def hash_file(path: str, key: str) -> str:
    """Hash of a file's bytes; `key` names the configuration value that led here."""
    return hashlib.blake2b(read_bytes(path, key), digest_size=16).hexdigest()


def read_bytes(path: str, key: str) -> bytes:
    """A file that the configuration names, or an error that names both."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{key}: cannot read {path!r}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Row:
    """One line's values, read with errors that say where they are."""

    path: str
    line: int
    values: dict[str, object]

    def error(self, field: str, problem: str) -> DataError:
        return DataError(f"{self.path}, line {self.line}, field {field!r}: {problem}")

    def text(self, field: str) -> str:
        if field not in self.values:
            raise self.error(field, "missing; expected a text")
        value = self.values[field]
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"got {value!r}; expected a text that is not empty")
        return value

    def optional_text(self, field: str, absent: str) -> str:
        return self.text(field) if field in self.values else absent

    def texts(self, field: str) -> tuple[str, ...]:
        if field not in self.values:
            raise self.error(field, "missing; expected a list of texts")
        value = self.values[field]
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise self.error(field, f"got {value!r}; expected a list of texts")
        return tuple(dict.fromkeys(value))


def _rows(path: str, key: str, known: frozenset[str]) -> Iterator[_Row]:
    # Lines are parted at "\n" alone: texts may hold other separators that splitlines() would cut.
    for number, raw in enumerate(read_bytes(path, key).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            values = json.loads(raw)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: got {values!r}; expected a JSON object")
        row = _Row(path, number, values)
        for field in values:
            if field not in known:
                raise row.error(field, f"unknown; known: {', '.join(sorted(known))}")
        yield row
