"""Human-written questions in SQuAD's JSON, the format in which most reading tests can be had.

A paragraph is a passage, an article is a group, relevance is the paragraph under which a question
stands. (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text".)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from capibench.corpus.corpus import (
    Corpus,
    Passage,
    Question,
    classify_query,
    hash_content,
    split_of,
)
from capibench.corpus.jsonl import hash_file, read_bytes
from capibench.errors import DataError


@dataclass
class Squad:
    """The corpus choice for a SQuAD-format file (SQuAD 1 and 2, XQuAD, ...)."""

    path: str
    heldout_fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.heldout_fraction <= 1.0:
            raise ValueError(
                f"heldout_fraction: got {self.heldout_fraction}; expected a number from 0 to 1"
            )

    def source_key(self) -> dict[str, object]:
        """The file by content."""
        return {"file": hash_file(self.path, "corpus.path")}

    def load(self) -> Corpus:
        """Read and check the file.

        Questions that have no answer (SQuAD 2) are left out and counted: no passage is relevant
        to them. A paragraph that occurs twice is one passage.
        """
        try:
            document = json.loads(read_bytes(self.path, "corpus.path"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not JSON ({error})") from error
        if not isinstance(document, dict):
            raise DataError(f"{self.path}: expected a JSON object with the field 'data'")
        passages: dict[str, Passage] = {}
        questions: dict[str, Question] = {}
        num_unanswerable = 0
        for a, article in enumerate(self._objects(document, "data", "")):
            at_article = f"data[{a}]"
            title = self._text(article, "title", at_article) if "title" in article else at_article
            for p, paragraph in enumerate(self._objects(article, "paragraphs", at_article)):
                at_paragraph = f"{at_article}.paragraphs[{p}]"
                text = self._text(paragraph, "context", at_paragraph)
                id_ = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
                passage = passages.setdefault(id_, Passage(id_, text, title, title))
                for q, qa in enumerate(self._objects(paragraph, "qas", at_paragraph)):
                    at_question = f"{at_paragraph}.qas[{q}]"
                    answers = tuple(
                        dict.fromkeys(
                            self._text(answer, "text", f"{at_question}.answers[{n}]")
                            for n, answer in enumerate(self._objects(qa, "answers", at_question))
                        )
                    )
                    if not answers:
                        num_unanswerable += 1
                        continue
                    question_id = self._text(qa, "id", at_question)
                    if question_id in questions:
                        raise self._error(at_question, "id", f"{question_id!r} was used before")
                    question = self._text(qa, "question", at_question)
                    questions[question_id] = Question(
                        id=question_id,
                        text=question,
                        relevant=(passage.id,),
                        answers=answers,
                        query_class=classify_query(question),
                        split=split_of(passage.group, self.heldout_fraction),
                    )
        if not questions:
            raise DataError(f"{self.path}: no question with an answer")
        content_hash = hash_content(list(passages.values()), list(questions.values()))
        return Corpus(
            name="squad",
            passages=tuple(passages.values()),
            questions=tuple(questions.values()),
            content_hash=content_hash,
            manifest={
                "source": "SQuAD-format JSON",
                "file": Path(self.path).name,
                "num_passages": len(passages),
                "num_questions": len(questions),
                "num_questions_heldout": sum(q.split == "heldout" for q in questions.values()),
                "num_unanswerable_left_out": num_unanswerable,
                "content_hash": content_hash,
            },
        )

    def _objects(self, parent: dict[str, object], field: str, at: str) -> list[dict[str, object]]:
        value = parent.get(field)
        if not isinstance(value, list):
            raise self._error(at, field, f"got {value!r}; expected a list")
        for n, item in enumerate(value):
            if not isinstance(item, dict):
                raise self._error(at, f"{field}[{n}]", f"got {item!r}; expected a JSON object")
        return value

    def _text(self, parent: dict[str, object], field: str, at: str) -> str:
        value = parent.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self._error(at, field, f"got {value!r}; expected a text that is not empty")
        return value

    def _error(self, at: str, field: str, problem: str) -> DataError:
        place = f"{at}.{field}" if at else field
        return DataError(f"{self.path}, field {place}: {problem}")
