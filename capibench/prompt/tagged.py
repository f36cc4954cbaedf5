"""The prompt form that the shipped model was trained on.

A small model reads structure far better than instructions, so each part begins with a special
token of its own tokenizer; training and serving share this file, so that they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PASSAGE_TAG = "<|passage|>"
QUESTION_TAG = "<|question|>"
ANSWER_TAG = "<|answer|>"
END_TAG = "<|end|>"


@dataclass
class TaggedPrompt:
    """Passages, question and answer parted by special tokens."""

    top_k: int
    passage_chars: int

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k: got {self.top_k}; expected at least 1 passage")
        if self.passage_chars < 1:
            raise ValueError(f"passage_chars: got {self.passage_chars}; expected at least 1")

    def render(self, question: str, passages: Sequence[str]) -> str:
        """Write the prompt of one request; of more than `top_k` passages the first are used."""
        parts = [
            f"{PASSAGE_TAG}{_without_tags(p[: self.passage_chars])}\n"
            for p in passages[: self.top_k]
        ]
        return f"{''.join(parts)}{QUESTION_TAG}{_without_tags(question)}\n{ANSWER_TAG}"

    def extract_answer(self, generated: str) -> str:
        """What the model said before it ended its answer (end tag, line end or a next part)."""
        answer = generated.lstrip()
        for stop in (END_TAG, "\n", PASSAGE_TAG, QUESTION_TAG, ANSWER_TAG):
            answer = answer.partition(stop)[0]
        return answer.strip()


def _without_tags(text: str) -> str:
    """Text is data: a tag inside it must not be read as the structure of the prompt."""
    return text.replace("<|", "< |")
