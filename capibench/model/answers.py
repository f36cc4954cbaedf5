"""How close an answer is to a reference, so that speed is never reported without quality.

Exact match and token F1 as in the evaluation of Rajpurkar et al. 2016, "SQuAD: 100,000+
Questions for Machine Comprehension of Text", §6.1: the best value over the references, after
normalisation. Ours differs in two points, because the answers here are code: punctuation becomes
a space (it parts `json.dumps` into two words instead of gluing them together), and articles stay
(`a` is a parameter's name).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_NOT_A_WORD = re.compile(r"[\W_]+")


def normalise(text: str) -> list[str]:
    """The words that count: lower case, punctuation (the underscore too) turned into spaces."""
    return _NOT_A_WORD.sub(" ", text.lower()).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised reference, else 0.0."""
    _require(references)
    words = normalise(prediction)
    return float(any(words == normalise(r) for r in references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall (as multisets) against the best reference."""
    _require(references)
    return max(_f1(normalise(prediction), normalise(r)) for r in references)


def _f1(predicted: list[str], reference: list[str]) -> float:
    if not predicted or not reference:
        # An empty answer is right only where nothing was asked for.
        return float(predicted == reference)
    common = (Counter(predicted) & Counter(reference)).total()
    # Equal to 2PR / (P + R), without a special case for common == 0.
    return 2.0 * common / (len(predicted) + len(reference))


def _require(references: Sequence[str]) -> None:
    if not references:
        raise ValueError("references is empty; a score needs at least one reference answer.")
