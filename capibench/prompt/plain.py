"""A prompt in plain English, for models that have not learnt our tags.

The same decisions as the tagged form (how many passages, where they are cut), so that a study that
swaps the model compares models and not amounts of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INSTRUCTION = "Answer the question in one line. Use the passages where they help."


@dataclass
class PlainPrompt:
    """Numbered passages, the question, and the word after which the answer begins."""

    top_k: int
    passage_chars: int

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k: got {self.top_k}; expected at least 1 passage")
        if self.passage_chars < 1:
            raise ValueError(f"passage_chars: got {self.passage_chars}; expected at least 1")

    def render(self, question: str, passages: Sequence[str]) -> str:
        """Write the prompt of one request; of more than `top_k` passages the first are used."""
        parts = [INSTRUCTION]
        parts += [
            f"Passage {number}: {passage[: self.passage_chars]}"
            for number, passage in enumerate(passages[: self.top_k], start=1)
        ]
        parts.append(f"Question: {question}\nAnswer:")
        return "\n\n".join(parts)

    def extract_answer(self, generated: str) -> str:
        """The first line; what follows is the model continuing the pattern of the prompt."""
        return generated.lstrip().partition("\n")[0].strip()
