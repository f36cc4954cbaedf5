"""What quantizing did to a model's language: perplexity and top-1 on the same held-out tokens.

A speed without it says nothing (METHOD: no speed without quality). Every text is cut into windows
that never cross texts; each window is scored from its second token on. Per-token values are kept,
so that agreement and intervals are derived from paired tokens later. The Kullback-Leibler
divergence needs both models' full distributions at once; quantizing replaces layers in place, so
only one model is at hand here and it is not computed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel

_FILE = "text_quality.npz"
_ARRAYS = ("nll", "top1", "targets", "windows")
_RESAMPLES = 2000
_BOOTSTRAP_SEED = 0  # the same rows give the same interval


@dataclass(frozen=True, slots=True)
class TextQuality:
    """Per scored token, in order: all four arrays have the length `num_tokens`."""

    nll: npt.NDArray[np.float32]  # negative log-likelihood of the true token, nats
    top1: npt.NDArray[np.int32]  # the token that the model would have written
    targets: npt.NDArray[np.int32]  # the true token
    windows: npt.NDArray[np.int32]  # number of the window that it stands in

    @property
    def num_tokens(self) -> int:
        return len(self.nll)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite when that overflows."""
        return _exp(float(np.mean(self.nll, dtype=np.float64)))

    def save(self, folder: Path) -> None:
        """Write it into `folder`."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(folder / _FILE, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> TextQuality:
        """Read what `save` wrote; DataError when it is missing or damaged."""
        path = folder / _FILE
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in _ARRAYS})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not readable as text quality: {error}") from error


def evaluate(
    model: LanguageModel, texts: Sequence[str], max_tokens: int, window: int
) -> TextQuality:
    """Score `texts` in order until `max_tokens` tokens are scored.

    Args:
        model: any precision; its logits are widened to float32 before the log-softmax.
        texts: held-out text, which the model was not trained on.
        max_tokens: scored tokens at most (the first token of a window has no prediction).
        window: tokens that the model sees at once, at least 2.

    Raises:
        ValueError: `window` is under 2, or the texts have no window with two tokens.
    """
    if window < 2:
        raise ValueError(f"window: got {window}; expected at least 2")
    columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _ARRAYS}
    left = max_tokens
    for number, ids in enumerate(_windows(model, texts, window)):
        ids = ids[: left + 1]
        if len(ids) < 2:
            break
        nll, top1 = _score(model, ids)
        columns["nll"].append(nll)
        columns["top1"].append(top1)
        columns["targets"].append(np.asarray(ids[1:], dtype=np.int32))
        columns["windows"].append(np.full(len(ids) - 1, number, dtype=np.int32))
        left -= len(ids) - 1
    if not columns["nll"]:
        raise ValueError("texts: no window has two tokens; expected held-out text")
    return TextQuality(**{name: np.concatenate(parts) for name, parts in columns.items()})


def _windows(model: LanguageModel, texts: Sequence[str], window: int) -> list[list[int]]:
    windows = []
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = (ids[begin : begin + window] for begin in range(0, len(ids), window))
        windows += [piece for piece in pieces if len(piece) >= 2]
    return windows


def _score(
    model: LanguageModel, ids: list[int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    with torch.inference_mode():
        tokens = torch.tensor([ids], device=model.module.device)
        logits = model.module(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        return nll.cpu().numpy(), logits.argmax(-1).to(torch.int32).cpu().numpy()


def compare(
    baseline: TextQuality, quantized: TextQuality
) -> dict[str, dict[str, float | int | None]]:
    """`perplexity` (of `quantized`), `perplexity_ratio` (to the baseline; above 1 is worse) and
    `top1_agreement`, each as value, low, high (95 %) and n (scored tokens).

    Percentile bootstrap over windows, not tokens, since tokens of a window hang together; both
    models are resampled with the same windows, so that the ratio's interval is a paired one.
    With fewer than two windows there is no interval (None).

    Raises:
        ValueError: the two were not computed on the same windows of the same tokens.
    """
    for name in ("targets", "windows"):
        if not np.array_equal(getattr(baseline, name), getattr(quantized, name)):
            raise ValueError(f"{name}: differ; expected both models on the same windows of tokens")
    _, window = np.unique(baseline.windows, return_inverse=True)
    tokens = np.bincount(window).astype(np.float64)

    def sums(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        return np.bincount(window, weights=values.astype(np.float64)).astype(np.float64)

    totals = {
        "perplexity": sums(quantized.nll),
        "perplexity_ratio": sums(quantized.nll) - sums(baseline.nll),
        "top1_agreement": sums(baseline.top1 == quantized.top1),
    }
    drawn = np.random.default_rng(_BOOTSTRAP_SEED).multinomial(
        len(tokens), np.full(len(tokens), 1 / len(tokens)), size=_RESAMPLES
    )
    result: dict[str, dict[str, float | int | None]] = {}
    for name, total in totals.items():
        finish = float if name == "top1_agreement" else _exp
        low: float | None = None
        high: float | None = None
        if len(tokens) >= 2:
            means = (drawn @ total) / (drawn @ tokens)
            low, high = (finish(float(bound)) for bound in np.quantile(means, (0.025, 0.975)))
        value = finish(float(total.sum() / tokens.sum()))
        result[name] = {"value": value, "low": low, "high": high, "n": baseline.num_tokens}
    return result


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
