"""The least similarity at which another question's answer may be served.

Some questions are remembered; probes are asked: paraphrases of remembered ones, and questions that
are not among them. A probe that is served the answer of a question with other relevant passages or
other answers is a false hit. On one half of the probes the lowest threshold is chosen whose
false-hit rate is, by its one-sided Clopper-Pearson bound (Clopper and Pearson, "The use of
confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26(4), 1934),
within the budget; on the other half, which had no part in choosing, it is judged.

The paraphrases are made by rules (other openings, word order kept, small words left out), so the
rate is one of these paraphrases at the stated share of them among the probes. What the load's own
questions do is measured in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from capibench.cache.similar.semantic import Cosine, Vector
from capibench.corpus.corpus import Question

Booleans = npt.NDArray[np.bool_]

_OPENINGS = (
    "Please tell me: {}",
    "Can you say {}",
    "I would like to know {}",
    "Quick question: {}",
    "{} Please answer briefly.",
    "Hi, {}",
)
_SMALL_WORDS = frozenset(("a", "an", "the", "is", "are", "does", "do", "did", "was", "of"))
_MIN_PROBES = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold, and what it does to probes that had no part in choosing it."""

    threshold: float | None  # None: no threshold keeps the budget
    num_probes: int
    num_hits: int
    num_false: int
    false_hit_rate: float | None  # None: no hits
    false_hit_low: float | None
    false_hit_high: float | None

    def as_dict(self) -> dict[str, Any]:
        """For the run's record."""
        return asdict(self)


def interval(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share."""
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(scipy_stats.beta.ppf(tail, count, total - count + 1))
    high = (
        1.0 if count == total else float(scipy_stats.beta.ppf(1 - tail, count + 1, total - count))
    )
    return low, high


def choose_threshold(
    similarities: npt.NDArray[np.float64], right: Booleans, budget: float, confidence: float
) -> float | None:
    """The lowest similarity whose hits are false, with `confidence`, at most at the rate `budget`.

    Args:
        similarities: [n] of each probe to the remembered question nearest to it.
        right: [n] whether that question's answer is the probe's.
    """
    order = np.argsort(-similarities, kind="stable")
    ordered, wrong = similarities[order], np.cumsum(~right[order])
    counts = np.arange(1, len(order) + 1)
    bound = np.ones(len(order))
    some = wrong < counts
    bound[some] = scipy_stats.beta.ppf(confidence, wrong[some] + 1, (counts - wrong)[some])
    is_last_of_equals = np.append(ordered[1:] < ordered[:-1], True)
    good = np.flatnonzero((bound <= budget) & is_last_of_equals)
    return float(ordered[good[-1]]) if len(good) else None


def calibrate(
    settings: Cosine,
    questions: Sequence[Question],
    encode: Callable[[Sequence[str]], Vector],
    rng: np.random.Generator,
) -> Calibration:
    """Remember some of `questions`, ask the probes, choose and judge.

    Raises:
        ValueError: too few questions to say anything; an embedder whose vectors hold no numbers.
    """
    chosen = [
        questions[int(place)]
        for place in rng.permutation(len(questions))[: settings.num_calibration_questions]
    ]
    # As many probes as remembered questions, of which the stated share are paraphrases of these.
    num_remembered = int(len(chosen) / (2 - settings.paraphrase_share))
    num_paraphrases = int(num_remembered * settings.paraphrase_share)
    remembered, unknown = chosen[:num_remembered], chosen[num_remembered:]
    asked = [*remembered[:num_paraphrases], *unknown]
    if len(asked) < _MIN_PROBES:
        raise ValueError(
            f"num_calibration_questions: got {len(chosen)} questions; expected more, to have at "
            f"least {_MIN_PROBES} probes"
        )
    texts = [
        *(paraphrase(question.text, rng) for question in remembered[:num_paraphrases]),
        *(question.text for question in unknown),
    ]
    similarities = (
        encode(texts).astype(np.float64)
        @ encode([question.text for question in remembered]).astype(np.float64).T
    )
    if not np.isfinite(similarities).all():
        raise ValueError(
            "threshold: got nan or infinity in the embedder's vectors; expected unit vectors"
        )
    nearest = similarities.argmax(axis=1)
    near = similarities[np.arange(len(asked)), nearest]
    right = np.array(
        [_same_answer(probe, remembered[row]) for probe, row in zip(asked, nearest, strict=True)]
    )
    halves = rng.permutation(len(asked)) % 2 == 0
    threshold = choose_threshold(
        near[halves], right[halves], settings.false_hit_budget, settings.confidence
    )
    judged = ~halves
    if threshold is None:
        return Calibration(None, int(judged.sum()), 0, 0, None, None, None)
    hits = judged & (near >= threshold)
    num_hits, num_false = int(hits.sum()), int((hits & ~right).sum())
    if num_hits == 0:
        return Calibration(threshold, int(judged.sum()), 0, 0, None, None, None)
    low, high = interval(num_false, num_hits, settings.confidence)
    return Calibration(
        threshold, int(judged.sum()), num_hits, num_false, num_false / num_hits, low, high
    )


def paraphrase(question: str, rng: np.random.Generator) -> str:
    """The same question in other words, by rules that keep its meaning."""
    words = question.split()
    if rng.random() < 0.5:
        kept = [word for word in words if word.lower() not in _SMALL_WORDS]
        words = kept or words
    text = " ".join(words)
    if rng.random() < 0.5:
        text = text.rstrip("?.! ")
    if rng.random() < 0.75:
        text = _OPENINGS[int(rng.integers(len(_OPENINGS)))].format(text[:1].lower() + text[1:])
    return text if text != question else f"{question} Thanks."


def _same_answer(a: Question, b: Question) -> bool:
    return a.id == b.id or (a.relevant == b.relevant and a.answers == b.answers)
