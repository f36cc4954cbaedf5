"""Words beside vectors: BM25 as bm25s has it, fusion as its papers have it, and their index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.errors import ConfigError, DataError
from capibench.index.allowed import Allowed
from capibench.index.fusion import WEIGHTS, Candidates, best, best_weight, fused_scores
from capibench.index.lexical import LexicalIndex
from capibench.index.stored_index import load_index

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
texts_of_words = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=0, max_size=9).map(" ".join), min_size=2, max_size=12
)


def bm25s_scores(texts: list[str], query: str) -> np.ndarray:
    retriever = bm25s.BM25(k1=1.5, b=0.75)
    retriever.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    words = bm25s.tokenize([query], return_ids=False, show_progress=False)[0]
    return retriever.get_scores(words) if words else np.zeros(len(texts), np.float32)


@given(texts_of_words, st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=5))
def test_scores_are_those_of_bm25s(texts: list[str], asked: list[str]) -> None:
    if not any(texts):
        return
    index = LexicalIndex(1.5, 0.75)
    index.add(texts[:1])
    index.add(texts[1:])
    query = " ".join(asked)
    np.testing.assert_allclose(index.scores(query), bm25s_scores(texts, query), atol=1e-5)


def test_forgotten_rows_and_files_are_as_if_never_there(tmp_path: Path) -> None:
    texts = ["alpha bravo", "bravo bravo charlie", "delta", "alpha delta delta"]
    index = LexicalIndex(1.5, 0.75)
    index.add(texts)
    index.scores("alpha")
    index.keep(np.array([1, 3]))
    index.write(tmp_path / "words")
    loaded = LexicalIndex(1.5, 0.75)
    loaded.read(tmp_path / "words")
    loaded.add(["echo bravo"])
    expected = bm25s_scores([texts[1], texts[3], "echo bravo"], "bravo delta")
    np.testing.assert_allclose(loaded.scores("bravo delta"), expected, atol=1e-5)
    (tmp_path / "bad").write_text("no")
    with pytest.raises(DataError, match="no word counts"):
        loaded.read(tmp_path / "bad")


CANDIDATES = Candidates(
    np.array([11, 12, 13]), np.float32([0.9, 0.5, 0.1]), np.float32([0.0, 2.0, 4.0])
)


def test_fusion_by_hand() -> None:
    np.testing.assert_allclose(
        fused_scores(CANDIDATES, 0.25, "weighted", 60),
        [0.25, 0.5 * 0.25 + 0.5 * 0.75, 0.75],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        fused_scores(CANDIDATES, 0.25, "reciprocal_rank", 60),
        [0.25 / 61, 0.25 / 62 + 0.75 / 62, 0.25 / 63 + 0.75 / 61],
    )
    ids, scores = best(CANDIDATES, np.array([0.1, 0.3, 0.3]), 4)
    assert ids.tolist() == [12, 13, 11, -1]
    assert scores.tolist() == [0.3, 0.3, 0.1, -np.inf]
    same = Candidates(np.array([1, 2]), np.float32([0.3, 0.3]), np.float32([0, 0]))
    assert fused_scores(same, 0.5, "weighted", 60).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("rule", ["weighted", "reciprocal_rank"])
@pytest.mark.parametrize(("right", "side"), [(11, 1.0), (13, 0.0)])
def test_the_weight_follows_the_side_that_is_right(rule: Any, right: int, side: float) -> None:
    choice = best_weight([CANDIDATES] * 3, [{right}] * 3, 1, rule, 60)
    assert abs(choice.weight - side) <= 0.5
    assert choice.mean_ndcg[choice.weight] == choice.ndcg.mean == 1.0
    assert choice.mean_ndcg[1.0 - side] == 0.0
    assert tuple(choice.mean_ndcg) == WEIGHTS
    with pytest.raises(ValueError, match="queries: got none"):
        best_weight([], [], 1, rule, 60)


def corpus(n: int = 60) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vectors know the topic of a text, words name the text."""
    generator = np.random.default_rng(0)
    topics = generator.standard_normal((6, 16))
    vectors = topics[np.arange(n) % 6] + generator.standard_normal((n, 16)) * 0.5
    texts = [f"{WORDS[i % 6]} function name{i} described at length" for i in range(n)]
    return vectors.astype(np.float32), np.arange(n, dtype=np.int64) * 2 + 10, texts


def built(choice: Callable[..., Any], **changes: object) -> tuple[Any, np.ndarray, np.ndarray]:
    index = choice("index", "hybrid_text", **changes)
    vectors, ids, texts = corpus()
    index.build_texts(vectors, ids, texts)
    return index, vectors, ids


@pytest.mark.parametrize("fusion", ["weighted", "reciprocal_rank"])
def test_finds_what_either_side_alone_would_miss(
    choice: Callable[..., Any], tmp_path: Path, fusion: str
) -> None:
    index, vectors, ids = built(choice, fusion=fusion)
    wanted = np.arange(0, 60, 7)
    noise = np.random.default_rng(5).standard_normal((len(wanted), 16)).astype(np.float32)
    queries = vectors[wanted] + noise
    texts = [f"what does name{i} do" for i in wanted]
    relevant = [{int(ids[i])} for i in wanted]
    with pytest.raises(RuntimeError, match="no dense_weight was given"):
        index.search_texts(queries, texts, 3)
    choice_made = index.choose_weight(queries, texts, relevant, 3)
    assert index.weight == choice_made.weight == index.describe()["dense_weight"]
    assert choice_made.ndcg.mean == 1.0 > choice_made.mean_ndcg[1.0]
    found, scores = index.search_texts(queries, texts, 3)
    assert found[:, 0].tolist() == ids[wanted].tolist()
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_array_equal(index.search(queries, 3)[0], index.dense.search(queries, 3)[0])

    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    np.testing.assert_array_equal(loaded.search_texts(queries, texts, 3)[0], found)
    assert loaded.describe() == index.describe()
    assert loaded.size_bytes() == index.size_bytes() > index.dense.size_bytes()
    with pytest.raises(DataError, match="not an index of type"):
        choice("index", "hybrid_text", k1=2.0).load(tmp_path / "index")


def test_weights_at_the_ends_are_the_sides(choice: Callable[..., Any]) -> None:
    index, vectors, ids = built(choice, dense_weight=1.0)
    queries = vectors[:4] * 1.5
    found, _ = index.search_texts(queries, ["name50 name51"] * 4, 5)
    np.testing.assert_array_equal(found, index.search(queries, 5)[0])
    index.set_weight(0.0)
    found, _ = index.search_texts(queries, ["name50 name51"] * 4, 2)
    assert {tuple(sorted(row)) for row in found.tolist()} == {(int(ids[50]), int(ids[51]))}


def test_words_follow_additions_and_removals(choice: Callable[..., Any]) -> None:
    index, vectors, ids = built(choice, dense_weight=0.0)

    def ask(name: str, k: int = 1, **more: Any) -> list[int]:
        found, _ = index.search_texts(vectors[:1], [name], k, **more)
        return [int(one) for one in found[0]]

    assert ask("name7") == [24]
    index.add(vectors[:2] * 0.9, np.array([1, 3]), ["zulu first", "zulu zulu second"])
    assert ask("zulu", 2) == [3, 1]
    index.remove(np.array([3]))
    assert ask("zulu") == [1]
    index.remove(ids[:40])  # compacts: all rows are numbered anew
    assert index.dense.store.num_rows == 21
    assert ask("zulu") == [1]
    assert ask("name50") == [110]
    assert 24 not in ask("name7", 21)
    assert ask("name50", allowed=Allowed(np.array([1, 112]))) != [110]
    assert ask("name50 name51", 3, allowed=Allowed(np.array([112]))) == [112, -1, -1]


def test_bad_input_is_refused(choice: Callable[..., Any]) -> None:
    index, vectors, ids = built(choice, dense_weight=0.5)
    with pytest.raises(ValueError, match="texts: got 1; expected one for each of 2 vectors"):
        index.search_texts(vectors[:2], ["one"], 1)
    with pytest.raises(ValueError, match="k: got 61; expected at most the number of vectors, 60"):
        index.search_texts(vectors[:1], ["one"], 61)
    with pytest.raises(ValueError, match="texts: got none"):
        index.build(vectors, ids)
    with pytest.raises(ValueError, match=r"weight: got 1\.5; expected 0 to 1"):
        index.set_weight(1.5)
    for changes, message in (
        ({"dense_weight": 2.0}, r"index\.dense_weight: got 2\.0; expected 0 to 1, or null"),
        ({"depth": 0}, r"index\.depth: got 0; expected at least 1"),
        ({"b": 2.0}, r"index\.b: got 2\.0; expected 0 to 1"),
        ({"k1": -1.0}, r"index\.k1: got -1\.0; expected a finite number of at least 0"),
        ({"fusion": "sum"}, r"index\.fusion: got 'sum'; expected one of weighted"),
    ):
        with pytest.raises(ConfigError, match=message):
            choice("index", "hybrid_text", **changes)
