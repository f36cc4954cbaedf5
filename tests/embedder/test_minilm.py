"""The real MiniLM: semantics, precision, independence of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capibench.embedder import minilm
from capibench.embedder.minilm import MiniLm
from capibench.errors import ConfigError, DataError

TEXTS = [
    "How do I open a file for reading?",
    "Reading: " + "a rather long passage about files and sockets, " * 20,
    "x",
    "What is the way to read from a file on disk?",
    "The cat sleeps on the warm roof.",
    *(f"number {i} " * (i % 7 + 1) for i in range(60)),
]


def opened(precision: str, max_tokens: int = 256) -> MiniLm:
    embedder = MiniLm(precision=precision, max_batch_size=1, max_tokens=max_tokens)  # type: ignore[arg-type]
    embedder.open()
    return embedder


@pytest.fixture(scope="module")
def fp32() -> MiniLm:
    return opened("fp32")


@pytest.fixture(scope="module")
def fp32_vectors(fp32: MiniLm) -> np.ndarray:
    return fp32.encode(TEXTS)


def test_batch_invariant_in_fp32(fp32: MiniLm, fp32_vectors: np.ndarray) -> None:
    alone = np.vstack([fp32.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(fp32_vectors, alone, atol=1e-5)


def test_bf16_agrees_with_fp32(fp32_vectors: np.ndarray) -> None:
    bf16 = opened("bf16").encode(TEXTS)
    assert bf16.dtype == np.float32
    assert (bf16 * fp32_vectors).sum(axis=1).min() >= 0.999


def test_a_paraphrase_is_nearer_than_an_unrelated_sentence(fp32_vectors: np.ndarray) -> None:
    question, _, _, paraphrase, unrelated = fp32_vectors[:5]
    assert question @ paraphrase > 0.6 > 0.3 > question @ unrelated


def test_agrees_with_the_published_model(fp32: MiniLm) -> None:
    """The model card's own example; sentence-transformers gives 0.5334 for it (rounded)."""
    a, b = fp32.encode(["This is an example sentence", "Each sentence is converted"])
    assert a[:3] == pytest.approx([0.0676, 0.0635, 0.0487], abs=1e-4)
    assert np.linalg.norm(b) == pytest.approx(1, abs=1e-6)


def test_cut_at_max_tokens(fp32: MiniLm) -> None:
    short = opened("fp32", max_tokens=6)
    head, whole = short.encode(["one two three four", "one two three four five six seven"])
    np.testing.assert_allclose(head, whole, atol=1e-6)
    head, whole = fp32.encode(["one two three four", "one two three four five six seven"])
    assert head @ whole < 0.99


def test_fingerprint_tells_precision_and_length_before_open() -> None:
    prints = {
        MiniLm(precision=precision, max_batch_size=1, max_tokens=tokens).fingerprint()
        for precision in ("bf16", "fp32")
        for tokens in (128, 256)
    }
    assert len(prints) == 4
    auto = MiniLm(precision="auto", max_batch_size=1, max_tokens=256)
    assert auto.describe()["precision"] in ("bf16", "fp32")
    assert auto.fingerprint() in prints


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "get_model_path", lambda: tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: sha256 is .*, expected 53aa5117"):
        MiniLm(precision="fp32", max_batch_size=1, max_tokens=256).open()


def test_not_open() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        MiniLm(precision="fp32", max_batch_size=1, max_tokens=256).encode(["a"])


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_max_tokens_out_of_range(choice: object, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.max_tokens: got .*; expected 3 to 512"):
        choice("embedder", "minilm", max_tokens=max_tokens)  # type: ignore[operator]
