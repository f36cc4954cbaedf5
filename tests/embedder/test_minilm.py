"""The real MiniLM: semantics, precision, independence of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


FORWARD_TOKENS = 16


def closed(precision: str, max_tokens: int = 256, max_forward_tokens: int = 2048) -> MiniLm:
    return MiniLm(
        precision=precision,  # type: ignore[arg-type]
        max_batch_size=1,
        max_tokens=max_tokens,
        forward_tokens=FORWARD_TOKENS,
        max_forward_tokens=max_forward_tokens,
    )


def opened(precision: str, max_tokens: int = 256, max_forward_tokens: int = 2048) -> MiniLm:
    embedder = closed(precision, max_tokens, max_forward_tokens)
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


def counted(embedder: MiniLm, texts: list[str]) -> tuple[int, int, int]:
    """Forward passes, tokens and tokens with padding that `texts` cost."""
    names = ("forwards", "tokens", "padded_tokens")
    before = [int(embedder.describe()[name]) for name in names]
    embedder.encode(texts)
    after = [int(embedder.describe()[name]) for name in names]
    forwards, tokens, padded = (b - a for a, b in zip(before, after, strict=True))
    return forwards, tokens, padded


@settings(max_examples=8)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_in_any_company_the_same_vector_and_little_padding(
    fp32: MiniLm, num_words: list[int]
) -> None:
    """Mixed lengths in any order: rows belong to their texts, and what is padded is at most what
    a pass for every text would have cost more."""
    texts = [f"{i} " + "word " * n for i, n in enumerate(num_words)]
    together = fp32.encode(texts)
    alone = np.vstack([fp32.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    forwards, tokens, padded = counted(fp32, texts)
    assert 1 <= forwards <= len(texts)
    assert 0 <= padded - tokens <= FORWARD_TOKENS * (len(texts) - forwards)


def test_equal_lengths_share_passes_of_bounded_size(fp32: MiniLm) -> None:
    texts = ["one two three"] * 30  # five tokens each, with [CLS] and [SEP]
    assert counted(fp32, texts) == (1, 150, 150)
    small = opened("fp32", max_forward_tokens=50)
    assert counted(small, texts) == (3, 150, 150)
    assert counted(small, ["word " * 100])[0] == 1  # alone, however long


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
        closed(precision, tokens).fingerprint()
        for precision in ("bf16", "fp32")
        for tokens in (128, 256)
    }
    assert len(prints) == 4
    auto = closed("auto")
    assert auto.describe()["precision"] in ("bf16", "fp32")
    assert auto.fingerprint() in prints


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "get_model_path", lambda: tmp_path)
    with pytest.raises(DataError, match=r"model\.safetensors: sha256 is .*, expected 53aa5117"):
        closed("fp32").open()


def test_not_open() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        closed("fp32").encode(["a"])


@pytest.mark.parametrize(("name", "least"), [("forward_tokens", 0), ("max_forward_tokens", 1)])
def test_passes_out_of_range(choice: object, name: str, least: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"embedder\.{name}: got {least - 1}; expected at least {least}"
    ):
        choice("embedder", "minilm", **{name: least - 1})  # type: ignore[operator]


@pytest.mark.parametrize("max_tokens", [2, 513])
def test_max_tokens_out_of_range(choice: object, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.max_tokens: got .*; expected 3 to 512"):
        choice("embedder", "minilm", max_tokens=max_tokens)  # type: ignore[operator]
