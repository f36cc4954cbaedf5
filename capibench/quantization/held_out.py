"""Every quality figure of a served model, from one passage over held-out text.

Made once per model and method and kept as an artifact: per-token and per-item values of the
unquantized model and of the quantized one beside it, from which the figures and their intervals
are derived when they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from capibench.model.language_model import LanguageModel
from capibench.quantization.cloze import ClozeScores, answer_items, compare_cloze, make_items
from capibench.quantization.quality import Figure, TextQuality, compare, evaluate, evaluate_pair

# Enough tokens for an interval of about one per cent of the perplexity, few enough that a
# quantized model is judged in seconds.
NUM_TOKENS = 20_000
WINDOW = 256  # tokens seen at once: matrix products with many rows, as in prefill
FEW_ROWS = 8  # and with few, as in decoding: some quantized layers use another kernel there
FEW_ROWS_TOKENS = 4_000
# Short enough that the default corpus has about 200 passages of that length. The shipped model is
# right on 62 % of them, guessing would be on 25 %: far from both ends, where no loss would show.
CLOZE_ITEMS = 200
CLOZE_CONTEXT = 32
CLOZE_CONTINUATION = 16
_CLOZE_SEED = 0

_BASELINE, _QUANTIZED = "baseline", "quantized"
_MANY, _FEW, _CLOZE = "many_rows", "few_rows", "cloze"
_log = logging.getLogger(__name__)


def judge(
    baseline: LanguageModel, quantized: LanguageModel | None, texts: Sequence[str], folder: Path
) -> None:
    """Score `texts` with both models and write what they said into the empty `folder`.

    Args:
        quantized: a second loading of the same source, quantized; None: there is none to judge.
        texts: held-out passages.

    Raises:
        ValueError: the texts have no window with two tokens, or logits are not finite.
    """
    items = make_items(baseline, texts, CLOZE_ITEMS, CLOZE_CONTEXT, CLOZE_CONTINUATION, _CLOZE_SEED)
    if not items:
        _log.warning("too few held-out passages of %d tokens: no cloze accuracy is computed",
                     CLOZE_CONTEXT + CLOZE_CONTINUATION)  # fmt: skip
    if quantized is None:
        alone = evaluate(baseline, texts, NUM_TOKENS, WINDOW)
        alone.save(_made(folder, _BASELINE, _MANY))
        if items:
            answer_items(baseline, items).save(_made(folder, _BASELINE, _CLOZE))
        return
    names = (_BASELINE, _QUANTIZED)
    for part, tokens, window in ((_MANY, NUM_TOKENS, WINDOW), (_FEW, FEW_ROWS_TOKENS, FEW_ROWS)):
        pair = evaluate_pair(baseline, quantized, texts, tokens, window)
        for name, quality in zip(names, pair, strict=True):
            quality.save(_made(folder, name, part))
    if items:
        for name, model in zip(names, (baseline, quantized), strict=True):
            answer_items(model, items).save(_made(folder, name, _CLOZE))


def figures(folder: Path) -> dict[str, Figure]:
    """What `judge` found, as value, low, high (95 %) and n.

    The figures of `compare` and `compare_cloze`, and of a quantized model also
    `few_rows.perplexity_ratio` and `few_rows.kl_mean`: as its layers multiply few rows at once.
    A model that is not quantized is compared with itself.

    Raises:
        DataError: a file is missing or damaged.
    """
    is_pair = (folder / _QUANTIZED).is_dir()

    def compared(part: str) -> dict[str, Figure]:
        baseline = TextQuality.load(folder / _BASELINE / part)
        return compare(
            baseline, TextQuality.load(folder / _QUANTIZED / part) if is_pair else baseline
        )

    result = compared(_MANY)
    if is_pair:
        few = compared(_FEW)
        for name in ("perplexity_ratio", "kl_mean"):
            result[f"{_FEW}.{name}"] = few[name]
    if (folder / _BASELINE / _CLOZE).is_dir():
        baseline = ClozeScores.load(folder / _BASELINE / _CLOZE)
        quantized = ClozeScores.load(folder / _QUANTIZED / _CLOZE) if is_pair else baseline
        result |= compare_cloze(baseline, quantized)
    return result


def _made(folder: Path, model: str, part: str) -> Path:
    made = folder / model / part
    made.mkdir(parents=True)
    return made
