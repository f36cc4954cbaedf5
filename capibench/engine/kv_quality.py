"""What an int8 key-value cache does to a model's language, apart from what its weights do.

Text quality is computed without a cache, so it cannot see this. Here the engine's own loop reads
the first half of each held-out window as a prompt and is then given the rest token by token, over
an exact cache and over an int8 one in step. Every scored token is thus predicted from a past that
was read back from int8, with the same tokens, neighbours and kernels on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capibench.engine.decoding import CachedBatch, count_int8_layers
from capibench.model.language_model import LanguageModel
from capibench.quantization.quality import (
    Figure,
    TextQuality,
    compare,
    kl_divergence,
    token_windows,
)

# About 2,500 scored tokens: an interval of about a tenth of the divergence to either side, after
# some ten seconds of decoding the shipped model.
TOKENS = 5_000
WINDOW = 256
ROWS = 16
_MIN_TOKENS = 3  # one to read, one to append, one to predict
_SIDES = ("exact", "int8")


def judge_kv_cache(model: LanguageModel, texts: Sequence[str], folder: Path) -> None:
    """Write into `folder` what `model` says about `texts` over either cache."""
    for name, quality in zip(
        _SIDES, evaluate_kv_cache(model, texts, TOKENS, WINDOW, ROWS), strict=True
    ):
        (folder / name).mkdir()
        quality.save(folder / name)


def kv_cache_figures(folder: Path) -> dict[str, Figure]:
    """Perplexity ratio, mean divergence and top-1 agreement from what `judge_kv_cache` wrote."""
    exact, rounded = (TextQuality.load(folder / name) for name in _SIDES)
    found = compare(exact, rounded)
    names = ("perplexity_ratio", "kl_mean", "top1_agreement")
    return {f"kv_cache.{name}": found[name] for name in names}


def evaluate_kv_cache(
    model: LanguageModel, texts: Sequence[str], max_tokens: int, window: int, num_rows: int
) -> tuple[TextQuality, TextQuality]:
    """Score the second halves of windows of `texts` over both caches.

    Args:
        model: the one that is served, quantized or not.
        texts: held-out text, which the model was not trained on.
        max_tokens: tokens of text that are read at most; about half of them are scored.
        window: tokens of one text that stand in one row, at least 3.
        num_rows: windows that are decoded together.

    Returns:
        Quality over the exact cache, and over the int8 one with its divergence from the former.

    Raises:
        ConfigError: no layer of the model can hold its past as int8.
        ValueError: an argument is out of its range, no window has three tokens, or the model's
            logits are not finite.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows: got {num_rows}; expected at least 1")
    count_int8_layers(model.module.config)
    windows = token_windows(model, texts, max_tokens, window)
    windows = [ids for ids in windows if len(ids) >= _MIN_TOKENS]
    if not windows:
        raise ValueError("texts: no window has three tokens; expected longer held-out text")
    by_length = sorted(range(len(windows)), key=lambda number: len(windows[number]))
    groups = (by_length[i : i + num_rows] for i in range(0, len(windows), num_rows))  # end together
    steps = [
        torch.cat((torch.tensor(group)[rows, None], values), dim=1)
        for group in groups
        for rows, values in _decode(model, [windows[number] for number in group])
    ]
    table = torch.cat(steps).numpy()
    table = table[np.argsort(table[:, 0], kind="stable")]  # window by window, tokens in order
    number, targets, exact_nll, exact_top1, int8_nll, int8_top1, kl = table.T
    if not np.isfinite(table).all():
        raise ValueError(f"model {model.fingerprint}: got NaN or infinite logits; expected finite")

    def quality(nll: object, top1: object, kl: object) -> TextQuality:
        return TextQuality(
            nll=np.asarray(nll, dtype=np.float32),
            top1=np.asarray(top1, dtype=np.int32),
            targets=targets.astype(np.int32),
            windows=number.astype(np.int32),
            kl=None if kl is None else np.asarray(kl, dtype=np.float32),
        )

    return quality(exact_nll, exact_top1, None), quality(int8_nll, int8_top1, kl)


@torch.inference_mode()
def _decode(model: LanguageModel, windows: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Per step: the windows [n] that still have a token to predict, and float64 [n, 6] of target,
    negative log-likelihood and top token over either cache, divergence."""
    module = model.module
    device = module.device
    prompts = [ids[: len(ids) // 2] for ids in windows]
    rests = [ids[len(ids) // 2 :] for ids in windows]
    num_steps = max(map(len, rests)) - 1
    exact = CachedBatch(module, prompts, num_steps, "native")
    rounded = CachedBatch(module, prompts, num_steps, "int8")
    exact.prefill()
    rounded.prefill()
    alive = list(range(len(windows)))
    for step in range(num_steps):
        keep = [i for i, row in enumerate(alive) if step + 1 < len(rests[row])]
        if len(keep) < len(alive):
            alive = [alive[i] for i in keep]
            for batch in (exact, rounded):
                batch.keep(torch.tensor(keep, device=device))
        tokens = torch.tensor([[rests[row][step]] for row in alive], device=device)
        targets = torch.tensor([rests[row][step + 1] for row in alive], device=device)
        logits = exact.step(tokens).float(), rounded.step(tokens).float()
        columns = [targets]
        for scores in logits:
            columns += [
                torch.nn.functional.cross_entropy(scores, targets, reduction="none"),
                scores.argmax(-1),
            ]
        columns.append(kl_divergence(*logits))
        yield torch.tensor(alive), torch.stack([column.double() for column in columns], 1).cpu()
