"""The semantic cache: nearest neighbours, the threshold and its budget, the audit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.cache.cache_quality import float16_recall, semantic_facts
from capibench.cache.similar.semantic import Cosine, SemanticCache, SimilarQueries
from capibench.cache.similar.semantic_calibration import (
    calibrate,
    choose_threshold,
    interval,
    paraphrase,
)
from capibench.corpus.corpus import Question
from capibench.embedder.hashing import Hashing

WORDS = ["list", "string", "file", "path", "socket", "queue", "regex", "date", "array", "tuple"]


def cosine(**changes: float) -> Cosine:
    values = {
        "false_hit_budget": 0.05,
        "confidence": 0.95,
        "num_calibration_questions": 600,
        "paraphrase_share": 0.5,
        "audit_share": 0.1,
        "same_answer_f1": 0.8,
        "max_entries": 100,
    }
    return Cosine(**{**values, **changes})  # type: ignore[arg-type]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), max_size=60), st.integers(1, 9))
def test_nearest_is_that_of_an_exhaustive_search(
    steps: list[tuple[int, int]], max_entries: int
) -> None:
    rng = np.random.default_rng(0)
    similar, model = SimilarQueries(max_entries), dict[bytes, np.ndarray]()
    latest: list[bytes] = []  # slots in the order in which they were given away
    for operation, number in steps:
        key, vector = bytes([number]), np.abs(unit(rng, 8))
        if operation == 0:
            similar.add(key, vector)
            if key not in model:
                latest.append(key)
                if len(latest) > max_entries:
                    model.pop(latest.pop(0), None)
            model[key] = vector
        elif operation == 1 and key in model:
            similar.forget(key)
            del model[key]
            latest[latest.index(key)] = b"gone"
        assert len(similar) == len(model)
        query = np.abs(unit(rng, 8))
        found = similar.nearest(query)
        if not model:
            assert found is None
        else:
            best = max(model, key=lambda name: float(model[name] @ query))
            assert found is not None
            assert found[0] == best
            assert found[1] == pytest.approx(float(model[best] @ query), abs=1e-6)


def test_the_threshold_is_the_lowest_whose_bound_keeps_the_budget() -> None:
    rng = np.random.default_rng(0)
    near = rng.random(400).round(2)
    right = rng.random(400) < near  # the nearer, the likelier right
    for budget in (0.1, 0.2, 0.4):
        threshold = choose_threshold(near, right, budget, 0.95)
        kept = []
        for candidate in sorted(set(near)):
            hits = near >= candidate
            wrong, total = int((hits & ~right).sum()), int(hits.sum())
            # One-sided at 95 % is the upper end of the two-sided interval at 90 %.
            if interval(wrong, total, 0.90)[1] <= budget:
                kept.append(candidate)
        assert threshold == (min(kept) if kept else None)


def test_without_evidence_there_is_no_threshold() -> None:
    assert choose_threshold(np.ones(5), np.ones(5, dtype=bool), 0.05, 0.95) is None
    assert choose_threshold(np.ones(99), np.zeros(99, dtype=bool), 0.05, 0.95) is None
    assert choose_threshold(np.ones(99), np.ones(99, dtype=bool), 0.05, 0.95) == 1.0


def test_interval_of_clopper_and_pearson() -> None:
    assert interval(0, 10, 0.95) == pytest.approx((0.0, 0.3085), abs=1e-4)  # their table
    assert interval(10, 10, 0.95) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert interval(3, 10, 0.95) == pytest.approx((0.0667, 0.6525), abs=1e-4)


def questions(count: int) -> list[Question]:
    rng = np.random.default_rng(3)
    texts = {
        "what does the " + " ".join(rng.choice(WORDS, size=5)) + f" of module {number} return?"
        for number in range(count)
    }
    return [
        Question(str(n), text, (f"p{n}",), (f"a{n}",), "short", "train")
        for n, text in enumerate(sorted(texts))
    ]


def test_calibrated_on_questions_it_keeps_the_budget_on_others() -> None:
    encode = Hashing(256, 8).encode
    settings = cosine(num_calibration_questions=2000)
    found = calibrate(settings, questions(2000), encode, np.random.default_rng(0))
    assert found.threshold is not None
    assert 0.3 < found.threshold < 1
    assert found.num_hits > 20, "most paraphrases are recognised"
    assert found.false_hit_rate is not None
    assert found.false_hit_low is not None
    assert found.false_hit_low <= 0.05
    again = calibrate(settings, questions(2000), encode, np.random.default_rng(0))
    assert again == found


def test_an_embedder_that_knows_nothing_gets_no_threshold() -> None:
    rng = np.random.default_rng(0)
    found = calibrate(cosine(), questions(200), lambda texts: unit(rng, len(texts), 16), rng)
    assert (found.threshold, found.num_hits, found.false_hit_rate) == (None, 0, None)


def test_vectors_without_numbers_are_refused_and_near_to_nothing() -> None:
    nan = np.full(4, np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match="threshold: got nan or infinity in the embedder's"):
        calibrate(
            cosine(),
            questions(40),
            lambda texts: np.tile(nan, (len(texts), 1)),
            np.random.default_rng(0),
        )
    cache, vector = (
        SemanticCache(cosine(), 0.9, np.random.default_rng(0)),
        np.eye(4, dtype=np.float32)[0],
    )
    cache.add("s", b"a", vector)
    cache.add("s", b"nan", nan)
    assert cache.find("s", nan) is None
    assert cache.find("s", np.zeros(4, dtype=np.float32)) is None
    assert cache.find("s", vector) == b"a"


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="num_calibration_questions: got 6 questions"):
        calibrate(cosine(), questions(6), Hashing(16, 8).encode, np.random.default_rng(0))


def test_a_paraphrase_differs_from_its_question_and_keeps_its_telling_words() -> None:
    rng = np.random.default_rng(0)
    for question in questions(100):
        other = paraphrase(question.text, rng)
        assert other != question.text
        assert set(WORDS) & set(question.text.split()) <= set(other.split())


def test_audited_and_served_hits_add_up_and_the_rate_has_its_interval() -> None:
    cache = SemanticCache(cosine(audit_share=0.25), 0.9, np.random.default_rng(0))
    vector = unit(np.random.default_rng(1), 8)
    cache.add("8", b"key", vector)
    assert cache.find("16", vector) is None, "another scope"
    assert semantic_facts(cache, 0.95) == {"cache.semantic.false_hit_rate": None}
    for number in range(400):
        assert cache.find("8", vector) == b"key"
        if cache.is_audited():
            cache.audit("the same answer", "the same answer" if number % 4 else "not at all that")
    stats = cache.stats()
    assert stats["served"] + stats["audited"] == 400
    assert 70 < stats["audited"] < 130
    facts = semantic_facts(cache, 0.95)
    name = "cache.semantic.false_hit_rate"
    assert facts[name] == stats["wrong"] / stats["audited"]
    assert facts[f"{name}.low"] < facts[name] < facts[f"{name}.high"]
    cache.forget("8", b"key")
    assert cache.find("8", vector) is None


def test_recall_of_rounded_vectors_is_the_share_of_passages_found_again() -> None:
    texts = [question.text for question in questions(50)]
    encode = Hashing(64, 8).encode
    passages = unit(np.random.default_rng(0), 30, 64)

    def search(vectors: np.ndarray) -> np.ndarray:
        return np.argsort(-(vectors @ passages.T), axis=1)[:, :4]

    recall = float16_recall(texts, encode, search)
    assert recall is not None
    assert 0.9 < recall <= 1
    other = iter([np.array([[0, 1, -1]]), np.array([[1, 2, -1]])])
    assert float16_recall(["q"], encode, lambda _: next(other)) == 0.5
    assert float16_recall([], encode, search) is None


@pytest.mark.parametrize("name", ["false_hit_budget", "confidence", "audit_share", "max_entries"])
def test_wrong_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got 0"):
        cosine(**{name: 0})
