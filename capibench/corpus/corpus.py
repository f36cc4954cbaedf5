"""What every source of text must become before it can be benchmarked.

A run can only say how well retrieval and answers did when relevance and reference answers are
known, and two runs can only be compared when they saw the same text. So a corpus is passages,
questions with their relevant passages and answers, and one hash over all of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPLITS = ("train", "heldout")
QUERY_CLASSES = ("short", "technical", "long", "coding")

_LONG_QUERY_MIN_WORDS = 17
_SHORT_QUERY_MAX_WORDS = 8
_CODE_TOKEN = re.compile(
    r"""
      `[^`]+`                     # `quoted` code
    | \w\(                        # a call: name(
    | \w_\w | (?<!\w)_\w          # snake_case, _private
    | [A-Za-z]\w*\.[A-Za-z_]\w    # dotted.name (a sentence end has a space after its dot)
    | \b[A-Za-z]*[a-z][A-Z]\w*    # camelCase, CamelCase
    | ->|==|!=|::|\*\*|\[\]|\{\}  # operators and literals of programs
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrievable text; `group` is what the train/held-out split keeps together."""

    id: str
    text: str
    title: str
    group: str


@dataclass(frozen=True, slots=True)
class Question:
    """One query whose relevant passages and accepted answers are known."""

    id: str
    text: str
    relevant: tuple[str, ...]
    answers: tuple[str, ...]
    query_class: str
    split: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The seam: all that the rest of the stack knows about its text."""

    name: str
    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]
    content_hash: str
    manifest: Mapping[str, object]

    def questions_in(self, split: str) -> tuple[Question, ...]:
        """The questions of one split ("train", "heldout"), or of both ("all")."""
        if split == "all":
            return self.questions
        if split not in SPLITS:
            raise ValueError(f"split: got {split!r}; expected one of train, heldout, all")
        return tuple(q for q in self.questions if q.split == split)


def hash_content(passages: Sequence[Passage], questions: Sequence[Question]) -> str:
    """Name the text itself, so that results on different text are never compared by accident.

    blake2b over one canonical JSON array per passage and per question, in order.
    """
    digest = hashlib.blake2b(digest_size=16)
    for p in passages:
        digest.update(_canonical(["passage", p.id, p.text, p.title, p.group]))
    for q in questions:
        digest.update(
            _canonical(["question", q.id, q.text, q.relevant, q.answers, q.query_class, q.split])
        )
    return digest.hexdigest()


def classify_query(text: str) -> str:
    """Sort a question into the class by which load and reports group it.

    The first rule that holds decides: "coding" when the text has a token that looks like code
    (call, snake_case, dotted name, inner capital, quoted code, operator); "long" above 16 words;
    "short" below 9 words; otherwise "technical".
    """
    if _CODE_TOKEN.search(text):
        return "coding"
    num_words = len(text.split())
    if num_words >= _LONG_QUERY_MIN_WORDS:
        return "long"
    if num_words <= _SHORT_QUERY_MAX_WORDS:
        return "short"
    return "technical"


def split_of(group: str, heldout_fraction: float) -> str:
    """Assign a whole group to a split by its name alone.

    Neighbouring passages share text, so the split is by group; by hash and not by a random
    generator, so that it is the same on every machine and does not move when others join.
    """
    digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    return "heldout" if position < heldout_fraction else "train"


def _canonical(row: list[object]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
