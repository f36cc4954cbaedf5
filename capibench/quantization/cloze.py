"""A small multiple-choice task over the corpus: does a quantized model still know what follows?

Perplexity and divergence say how far the distributions moved; whether decisions change is another
question. Each item is the beginning of a held-out passage, how it really goes on, and the same
stretch of three other passages. The model chooses the continuation with the highest mean
log-likelihood per token, which is the idea of `acc_norm` in EleutherAI's lm-evaluation-harness
(there per byte; here all continuations have the same number of tokens, so that none is favoured
for its length). One item per passage, so that the items are independent of each other.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel
from capibench.quantization.quality import Figure

NUM_CHOICES = 4
_FILE = "cloze.npz"
_BATCH_ITEMS = 4  # sequences of one forward pass: this many times NUM_CHOICES
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class ClozeItem:
    """All choices have the same number of tokens."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    answer: int  # which of the choices is the true continuation


@dataclass(frozen=True, slots=True)
class ClozeScores:
    """What one model answered; the answers are kept beside it to pair it with another model."""

    scores: npt.NDArray[np.float32]  # [items, choices] mean log-likelihood per token, nats
    answers: npt.NDArray[np.int32]  # [items] the true choice

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[items] whether the true continuation was the most likely one."""
        return np.asarray(self.scores.argmax(axis=1) == self.answers, dtype=np.bool_)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        np.savez_compressed(
            folder / _FILE, allow_pickle=False, scores=self.scores, answers=self.answers
        )

    @classmethod
    def load(cls, folder: Path) -> ClozeScores:
        """Read what `save` wrote; DataError when it is missing or damaged."""
        path = folder / _FILE
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return cls(scores=file["scores"], answers=file["answers"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not readable as cloze scores: {error}") from error


def make_items(
    model: LanguageModel,
    texts: Sequence[str],
    num_items: int,
    context_tokens: int,
    continuation_tokens: int,
    seed: int,
) -> list[ClozeItem]:
    """At most `num_items` items, one from each of as many texts, the same for the same seed.

    Args:
        model: its tokenizer cuts the texts.
        texts: held-out passages; those shorter than context and continuation together are left
            out, and so is one whose continuation repeats an earlier one's.
        num_items: drawn at random from the usable texts where there are more.
        seed: of the drawing, of the distractors and of the place of the true continuation.

    Returns:
        no item at all where fewer than `NUM_CHOICES` texts are long enough: there is no task.

    Raises:
        ValueError: a number is under 1.
    """
    for name, value in (
        ("num_items", num_items),
        ("context_tokens", context_tokens),
        ("continuation_tokens", continuation_tokens),
    ):
        if value < 1:
            raise ValueError(f"{name}: got {value}; expected at least 1")
    whole = context_tokens + continuation_tokens
    # By continuation: a distractor equal to the truth would make the answer a matter of luck.
    usable: dict[tuple[int, ...], tuple[int, ...]] = {}
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= whole:
            usable.setdefault(tuple(ids[context_tokens:whole]), tuple(ids[:context_tokens]))
    if len(usable) < NUM_CHOICES:
        return []
    continuations = list(usable)
    contexts = list(usable.values())
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(usable))[:num_items])
    items = []
    for number in chosen.tolist():
        others = generator.choice(len(usable) - 1, NUM_CHOICES - 1, replace=False)
        choices = [continuations[other + (other >= number)] for other in others.tolist()]
        answer = int(generator.integers(NUM_CHOICES))
        choices.insert(answer, continuations[number])
        items.append(ClozeItem(contexts[number], tuple(choices), answer))
    return items


def answer_items(model: LanguageModel, items: Sequence[ClozeItem]) -> ClozeScores:
    """Score every choice of every item.

    Raises:
        ValueError: there is no item, or the model's logits are not finite.
    """
    if not items:
        raise ValueError("items: got none; expected at least 1")
    context_tokens, continuation_tokens = len(items[0].context), len(items[0].choices[0])
    parts = []
    for begin in range(0, len(items), _BATCH_ITEMS):
        batch = items[begin : begin + _BATCH_ITEMS]
        sequences = [item.context + choice for item in batch for choice in item.choices]
        with torch.inference_mode():
            tokens = torch.tensor(sequences, device=model.module.device)
            # The last token of the context predicts the first of the continuation.
            logits = model.module(
                input_ids=tokens, use_cache=False, logits_to_keep=continuation_tokens + 1
            ).logits
            log_p = logits[:, :-1].float().log_softmax(-1)
            found = log_p.gather(-1, tokens[:, context_tokens:, None])[..., 0].mean(-1)
        parts.append(found.reshape(len(batch), NUM_CHOICES).cpu().numpy())
    scores = np.concatenate(parts)
    if not np.isfinite(scores).all():
        raise ValueError("model: got NaN or infinite logits; expected finite ones")
    return ClozeScores(scores, np.array([item.answer for item in items], dtype=np.int32))


def compare_cloze(baseline: ClozeScores, quantized: ClozeScores) -> dict[str, Figure]:
    """`cloze_accuracy` (of `quantized`) and `cloze_loss` (accuracy of the baseline minus that;
    above 0 is worse), each as value, low, high (95 %) and n (items).

    The accuracy's interval is Wilson's (1927). The loss is that of paired proportions: only items
    on which the two models disagree count. Its interval is Agresti and Min's adjusted Wald one
    ("Simple improved confidence intervals for comparing matched proportions", Statistics in
    Medicine 2005): half an item is added to each of the four cells, so that two models that
    happen to agree on every item still get an interval with a width, which a bootstrap would
    deny. A model compared with itself (the same object) loses exactly nothing.

    Raises:
        ValueError: the two did not answer the same items.
    """
    if not np.array_equal(baseline.answers, quantized.answers):
        raise ValueError("answers: differ; expected both models on the same items")
    n = len(quantized.answers)
    low, high = _wilson(int(quantized.correct.sum()), n)
    accuracy: Figure = {"value": quantized.accuracy, "low": low, "high": high, "n": n}
    lost = int((baseline.correct & ~quantized.correct).sum())
    won = int((~baseline.correct & quantized.correct).sum())
    low, high = (0.0, 0.0) if quantized is baseline else _agresti_min(lost, won, n)
    loss: Figure = {"value": (lost - won) / n, "low": low, "high": high, "n": n}
    return {"cloze_accuracy": accuracy, "cloze_loss": loss}


def _wilson(successes: int, n: int) -> tuple[float, float]:
    share = successes / n
    centre = share + _Z**2 / (2 * n)
    margin = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max((centre - margin) / scale, 0.0), min((centre + margin) / scale, 1.0)


def _agresti_min(lost: int, won: int, n: int) -> tuple[float, float]:
    centre = (lost - won) / (n + 2)
    margin = _Z * math.sqrt(lost + won + 1 - (lost - won) ** 2 / (n + 2)) / (n + 2)
    return max(centre - margin, -1.0), min(centre + margin, 1.0)
