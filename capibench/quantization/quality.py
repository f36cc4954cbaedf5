"""What quantizing did to a model's language: perplexity, top-1 and divergence on the same tokens.

A speed without it says nothing (METHOD: no speed without quality). Every text is cut into windows
that never cross texts; each window is scored from its second token on. Per-token values are kept,
so that agreement and intervals are derived from paired tokens later.

Perplexity averages losses with gains and so can hide a change; the Kullback-Leibler divergence
KL(unquantized || quantized) of the next-token distributions cannot be negative, and its 99th
percentile shows the few tokens that suffer most (Dutta et al., "Accuracy is Not All You Need",
arXiv 2407.09141). It needs both models' full distributions of a token at once. Storing
them would take gigabytes, so the two models are in memory together and take each window in turn.
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
from torch import Tensor, nn

from capibench.errors import DataError
from capibench.model.language_model import LanguageModel

_FILE = "text_quality.npz"
_ARRAYS = ("nll", "top1", "targets", "windows")
_RESAMPLES = 2000
_BOOTSTRAP_SEED = 0  # the same rows give the same interval
_TAIL = 0.99
_TAIL_TOKENS = 1000  # fewer have under ten tokens in the tail: no figure is given
_KL_ROWS = 32  # float64 distributions computed at once: 32 of 128,000 tokens are 33 MB

Figure = dict[str, float | int | None]  # value, low, high (95 %), n


@dataclass(frozen=True, slots=True)
class TextQuality:
    """Per scored token, in order: all arrays have the length `num_tokens`."""

    nll: npt.NDArray[np.float32]  # negative log-likelihood of the true token, nats
    top1: npt.NDArray[np.int32]  # the token that the model would have written
    targets: npt.NDArray[np.int32]  # the true token
    windows: npt.NDArray[np.int32]  # number of the window that it stands in
    kl: npt.NDArray[np.float32] | None  # KL(baseline || this model), nats; None: scored alone

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
        if self.kl is not None:
            arrays["kl"] = self.kl
        np.savez_compressed(folder / _FILE, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> TextQuality:
        """Read what `save` wrote; DataError when it is missing or damaged."""
        path = folder / _FILE
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in _ARRAYS}, kl=file.get("kl"))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not readable as text quality: {error}") from error


def evaluate(
    model: LanguageModel, texts: Sequence[str], max_tokens: int, window: int
) -> TextQuality:
    """Score `texts` in order until `max_tokens` tokens are scored, without a divergence.

    Args:
        model: any precision; its logits are widened to float32 before the log-softmax.
        texts: held-out text, which the model was not trained on.
        max_tokens: scored tokens at most (the first token of a window has no prediction).
        window: tokens that the model sees at once, at least 2.

    Raises:
        ValueError: `window` is under 2, the texts have no window with two tokens, or the model's
            logits are not finite.
    """
    columns = _Columns()
    for ids in token_windows(model, texts, max_tokens, window):
        columns.add(ids, window_logits(model.module, ids), None)
    return columns.quality()


def evaluate_pair(
    baseline: LanguageModel,
    quantized: LanguageModel,
    texts: Sequence[str],
    max_tokens: int,
    window: int,
) -> tuple[TextQuality, TextQuality]:
    """Score both models on the same windows: the baseline's quality and the quantized one's, the
    latter with its divergence from the former.

    Both models are in memory at once: load the source twice, since `Quantization.load` replaces
    layers in place. Arguments and errors as of `evaluate`.
    """
    of_baseline, of_quantized = _Columns(), _Columns()
    for ids in token_windows(baseline, texts, max_tokens, window):
        expected = window_logits(baseline.module, ids)
        got = window_logits(quantized.module, ids)
        of_baseline.add(ids, expected, None)
        of_quantized.add(ids, got, kl_divergence(expected, got))
    return of_baseline.quality(), of_quantized.quality()


def token_windows(
    model: LanguageModel, texts: Sequence[str], max_tokens: int, window: int
) -> list[list[int]]:
    """The windows of 2 to `window` tokens that are scored, `max_tokens` scored tokens in all."""
    if window < 2:
        raise ValueError(f"window: got {window}; expected at least 2")
    windows: list[list[int]] = []
    left = max_tokens
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for begin in range(0, len(ids), window):
            if left < 1:
                return windows
            piece = ids[begin : begin + min(window, left + 1)]
            if len(piece) >= 2:
                windows.append(piece)
                left -= len(piece) - 1
    if not windows:
        raise ValueError("texts: no window has two tokens; expected held-out text")
    return windows


def window_logits(module: nn.Module, ids: list[int]) -> Tensor:
    """float32 [len(ids) - 1, vocabulary]: what the model says about every token but the first."""
    with torch.inference_mode():
        tokens = torch.tensor([ids], device=next(module.parameters()).device)
        logits: Tensor = module(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        return logits


def kl_divergence(expected: Tensor, got: Tensor) -> Tensor:
    """KL(expected || got) in nats, float64 [n], of the distributions of two logits [n, vocabulary].

    In float64: the divergence of good 8-bit weights is 1e-5 nats and less, which the rounding of
    a float32 sum over the vocabulary would blur.
    """
    if expected.shape != got.shape:
        raise ValueError(
            f"got: logits of shape {tuple(got.shape)}; expected {tuple(expected.shape)}"
        )
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(expected), _KL_ROWS):
            rows = slice(begin, begin + _KL_ROWS)
            log_p = torch.log_softmax(expected[rows].double(), -1)
            log_q = torch.log_softmax(got[rows].to(expected.device).double(), -1)
            parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
        return torch.cat(parts).clamp_(min=0.0)  # below 0 only by rounding


class _Columns:
    """Collects one model's values window by window."""

    def __init__(self) -> None:
        self._parts: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _ARRAYS}
        self._kl: list[npt.NDArray[np.generic]] = []

    def add(self, ids: list[int], logits: Tensor, kl: Tensor | None) -> None:
        number = len(self._parts["nll"])
        targets = torch.tensor(ids[1:], device=logits.device)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        if not bool(torch.isfinite(nll if kl is None else nll + kl.to(nll)).all()):
            raise ValueError(
                f"model: got NaN or infinite logits in window {number}; expected finite ones"
            )
        self._parts["nll"].append(nll.cpu().numpy())
        self._parts["top1"].append(logits.argmax(-1).to(torch.int32).cpu().numpy())
        self._parts["targets"].append(np.asarray(ids[1:], dtype=np.int32))
        self._parts["windows"].append(np.full(len(ids) - 1, number, dtype=np.int32))
        if kl is not None:
            self._kl.append(kl.float().cpu().numpy())

    def quality(self) -> TextQuality:
        columns = {name: np.concatenate(parts) for name, parts in self._parts.items()}
        return TextQuality(**columns, kl=np.concatenate(self._kl) if self._kl else None)


def compare(baseline: TextQuality, quantized: TextQuality) -> dict[str, Figure]:
    """`perplexity` (of `quantized`), `perplexity_ratio` (to the baseline; above 1 is worse),
    `top1_agreement`, `kl_mean` and `kl_p99` (nats), each as value, low, high (95 %) and n (scored
    tokens).

    Percentile bootstrap over windows, not tokens, since tokens of a window hang together; both
    models are resampled with the same windows, so that the ratio's interval is a paired one.
    With fewer than two windows there is no interval (None); a `quantized` scored alone has no
    divergence (None), but a model compared with itself (the same object) has that of 0; and with
    fewer than 1,000 tokens there is no 99th percentile (None).

    Raises:
        ValueError: the two were not computed on the same windows of the same tokens.
    """
    for name in ("targets", "windows"):
        if not np.array_equal(getattr(baseline, name), getattr(quantized, name)):
            raise ValueError(f"{name}: differ; expected both models on the same windows of tokens")
    _, window = np.unique(baseline.windows, return_inverse=True)
    tokens = np.bincount(window).astype(np.float64)
    drawn = np.random.default_rng(_BOOTSTRAP_SEED).multinomial(
        len(tokens), np.full(len(tokens), 1 / len(tokens)), size=_RESAMPLES
    )

    def mean(values: npt.NDArray[np.generic]) -> tuple[float, npt.NDArray[np.float64]]:
        sums = np.bincount(window, weights=values.astype(np.float64))
        return float(sums.sum() / tokens.sum()), (drawn @ sums) / (drawn @ tokens)

    def figure(value: float, resampled: npt.NDArray[np.float64]) -> Figure:
        low: float | None = None
        high: float | None = None
        if len(tokens) >= 2:
            low, high = (float(bound) for bound in np.quantile(resampled, (0.025, 0.975)))
        return {"value": value, "low": low, "high": high, "n": baseline.num_tokens}

    def ratio(log_ratio: Figure) -> Figure:
        bounds = {name: log_ratio[name] for name in ("value", "low", "high")}
        exps = {name: None if x is None else _exp(x) for name, x in bounds.items()}
        return {**exps, "n": log_ratio["n"]}

    gained = quantized.nll.astype(np.float64) - baseline.nll.astype(np.float64)
    unknown: Figure = {"value": None, "low": None, "high": None, "n": baseline.num_tokens}
    kl = np.zeros_like(baseline.nll) if quantized is baseline else quantized.kl
    return {
        "perplexity": ratio(figure(*mean(quantized.nll))),
        "perplexity_ratio": ratio(figure(*mean(gained))),
        "top1_agreement": figure(*mean(baseline.top1 == quantized.top1)),
        "kl_mean": unknown if kl is None else figure(*mean(kl)),
        "kl_p99": unknown
        if kl is None or len(kl) < _TAIL_TOKENS
        else figure(*_resampled_tail(kl, window, drawn)),
    }


def _resampled_tail(
    values: npt.NDArray[np.float32],
    window: npt.NDArray[np.intp],
    drawn: npt.NDArray[np.int64],
) -> tuple[float, npt.NDArray[np.float64]]:
    """The smallest value that 99 % of the tokens do not exceed, and that of every resample.

    Sorted once: a resample only changes how often each token counts, so that its percentile is
    found in a running sum.

    Args:
        values: [n].
        window: [n] the row of `drawn.T` that tells how often the token was drawn.
        drawn: [resamples, windows].
    """
    order = np.argsort(values, kind="stable")
    ordered, owner = values[order], window[order]

    def tail(times: npt.NDArray[np.int64]) -> float:
        counted = np.cumsum(times[owner])
        return float(ordered[np.searchsorted(counted, _TAIL * counted[-1])])

    once = np.ones(drawn.shape[1], dtype=np.int64)
    return tail(once), np.array([tail(times) for times in drawn])


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
