"""The text that a method reads while it quantizes: given by the user, or Python's own docs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase as Tokenizer

from capibench.artifacts import ArtifactStore
from capibench.config import build, conf_dir
from capibench.errors import ConfigError

DEFAULT_CORPUS = "pydocs"
_FILE = "texts.json"


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Texts and everything that tells them from others."""

    texts: tuple[str, ...]
    source: str  # where they come from, in words
    digest: str  # blake2b over the texts in order

    def facts(self, tokenizer: Tokenizer, min_tokens: int) -> dict[str, Any]:
        """What a result records of them, lengths counted by the model's own tokenizer.

        Raises:
            ConfigError: all texts together have fewer than `min_tokens` tokens.
        """
        encoded = tokenizer(list(self.texts), add_special_tokens=False, verbose=False)["input_ids"]
        num_tokens = sum(len(ids) for ids in encoded)
        if num_tokens < min_tokens:
            raise ConfigError(
                "calibration_data",
                f"got {num_tokens} tokens in {len(self.texts)} texts; expected at least "
                f"{min_tokens} tokens of real text",
            )
        return {
            "source": self.source,
            "blake2b": self.digest,
            "num_texts": len(self.texts),
            "num_characters": sum(len(text) for text in self.texts),
            "num_tokens": num_tokens,
        }


def given(texts: Sequence[str]) -> CalibrationText:
    """The user's own texts.

    Raises:
        ConfigError: they are no list of texts.
    """
    kept = checked_texts(texts, "calibration_data")
    return CalibrationText(kept, "given by the caller", _digest(kept))


def checked_texts(texts: Sequence[str], key: str) -> tuple[str, ...]:
    """`texts` as a tuple; a ConfigError under `key` when it is not a list of non-empty texts."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(key, f"got {type(texts).__name__}; expected a list of texts")
    if not texts:
        raise ConfigError(key, "got an empty list; expected at least one text")
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{key}[{number}]", f"got {text!r}; expected text")
    return tuple(texts)


def standard_library(store: ArtifactStore, num_texts: int, seed: int, code: str) -> CalibrationText:
    """A seeded draw of `num_texts` documentation texts of the running standard library.

    Only modules that CapiBench does not hold out for evaluation. Harvesting takes seconds, so
    that the drawn texts are kept as an artifact.

    Args:
        code: hash of the code that harvests; part of the artifact's key.
    """
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "corpus" / f"{DEFAULT_CORPUS}.yaml"))
    assert isinstance(node, dict)
    corpus = build({str(key): value for key, value in node.items()}, "corpus")
    key = {
        "corpus": node,
        "source": corpus.source_key(),
        "code": code,
        "num_texts": num_texts,
        "seed": seed,
    }

    def make(folder: Path) -> None:
        loaded = corpus.load()
        wanted = {p for q in loaded.questions_in("train") for p in q.relevant}
        texts = [p.text for p in loaded.passages if p.id in wanted]
        drawn = np.random.default_rng(seed).permutation(len(texts))[:num_texts]
        (folder / _FILE).write_text(json.dumps([texts[i] for i in drawn]), encoding="utf-8")

    found = store.get_or_make("calibration", key, make)
    texts = tuple(json.loads((found.path / _FILE).read_text(encoding="utf-8")))
    source = f"docstrings of the standard library ({DEFAULT_CORPUS}), seed {seed}"
    return CalibrationText(texts, source, _digest(texts))


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
