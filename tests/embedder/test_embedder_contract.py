"""What every embedder choice must do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from choice_files import choices, load_choice
from hypothesis import given
from hypothesis import strategies as st

from capibench.clock import Modeled
from capibench.config import build
from capibench.errors import ConfigError

TEXTS = [
    "Return the number of items in the list.",
    "",
    "Öffnet eine Datei 文件 🐹",
    "Return " + "the very long list of " * 200 + "items",
    "...",
    "Return the number of items in the list.",
]
CHOICES = choices("embedder")


@pytest.fixture(scope="module", params=CHOICES)
def embedder(request: pytest.FixtureRequest) -> Any:
    built = build(load_choice("embedder", request.param), "embedder")
    built.open()
    return built


def test_unit_float32_rows_in_order(embedder: Any) -> None:
    vectors = embedder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.vstack([embedder.encode([text]) for text in TEXTS])
    assert ((vectors * alone).sum(axis=1) > 0.999).all()
    np.testing.assert_allclose(vectors[0], vectors[5], atol=1e-2)
    assert vectors[0] @ vectors[3] < 0.99


def test_deterministic(embedder: Any) -> None:
    np.testing.assert_array_equal(embedder.encode(TEXTS), embedder.encode(TEXTS))


def test_no_texts_no_rows(embedder: Any) -> None:
    assert embedder.encode([]).shape == (0, embedder.dimension)


def test_says_what_it_is(embedder: Any) -> None:
    assert embedder.fingerprint() == embedder.fingerprint() != ""
    assert embedder.describe()["type"] in CHOICES
    assert isinstance(embedder, Modeled) == embedder.modeled


def test_fingerprints_differ() -> None:
    prints = [build(load_choice("embedder", name), "embedder").fingerprint() for name in CHOICES]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("name", CHOICES)
def test_batch_size_zero_is_refused(choice: Callable[..., Any], name: str) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.max_batch_size: got 0; expected at least 1"):
        choice("embedder", name, max_batch_size=0)


@pytest.mark.parametrize("name", ["hashing", "modeled"])
def test_dimension_zero_is_refused(choice: Callable[..., Any], name: str) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.dimension: got 0; expected at least 1"):
        choice("embedder", name, dimension=0)


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=5), dimension=st.integers(1, 64))
def test_cheap_embedders_give_unit_vectors_for_any_text(texts: list[str], dimension: int) -> None:
    for name in ("hashing", "modeled"):
        cheap = build(load_choice("embedder", name, dimension=dimension), "embedder")
        lengths = np.linalg.norm(cheap.encode(texts), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)


def test_hashing_is_lexical(choice: Callable[..., Any]) -> None:
    hashing = choice("embedder", "hashing", dimension=4096)
    a, same, near, far = hashing.encode(
        ["Open the file", "open THE file!", "open a file", "rotate matrix"]
    )
    np.testing.assert_array_equal(a, same)
    assert a @ near > 0.3 > abs(a @ far)


def test_hashing_sums_signed_features(choice: Callable[..., Any]) -> None:
    hashing = choice("embedder", "hashing", dimension=4096)
    words = hashing.encode(["open", "file"])
    pair = hashing.encode(["open file"])[0]
    assert np.count_nonzero(words[0]) == 1
    assert pair @ words[0] == pytest.approx(1 / np.sqrt(3), abs=1e-6)
    assert pair @ words[1] == pytest.approx(1 / np.sqrt(3), abs=1e-6)
