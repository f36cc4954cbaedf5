"""The multiple-choice task: right items, scores against float64, intervals that cover."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_llama import load_tiny, save_tiny

from capibench.errors import DataError
from capibench.quantization.cloze import (
    NUM_CHOICES,
    ClozeScores,
    answer_items,
    compare_cloze,
    make_items,
)

CONTEXT, CONTINUATION = 12, 6
TEXTS = [f"{i:02d} passage {i * 7919:06d} and what follows it" for i in range(20)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(save_tiny(tmp_path_factory.mktemp("tiny")))


def items_of(model, texts=TEXTS, num_items=100, seed=0):
    return make_items(model, texts, num_items, CONTEXT, CONTINUATION, seed)


def cloze(correct):
    scores = np.zeros((len(correct), NUM_CHOICES), dtype=np.float32)
    scores[np.arange(len(correct)), np.where(correct, 0, 1)] = 1
    return ClozeScores(scores, np.zeros(len(correct), dtype=np.int32))


def test_items_are_cut_from_the_texts(model):
    items = items_of(model)
    assert len(items) == len(TEXTS)
    texts = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    stretches = {tuple(ids[CONTEXT : CONTEXT + CONTINUATION]) for ids in texts}
    for item in items:
        assert len(item.choices) == len(set(item.choices)) == NUM_CHOICES
        assert set(item.choices) <= stretches
        whole = list(item.context + item.choices[item.answer])
        assert sum(ids[: CONTEXT + CONTINUATION] == whole for ids in texts) == 1
    assert len({item.context for item in items}) == len(items)  # one item per passage
    assert {item.answer for item in items} == set(range(NUM_CHOICES))


def test_the_seed_decides(model):
    assert items_of(model) == items_of(model)
    assert items_of(model) != items_of(model, seed=1)
    few = items_of(model, num_items=5)
    assert len(few) == 5
    assert len({item.context for item in few}) == 5
    assert {i.context for i in few} != {i.context for i in items_of(model, num_items=5, seed=1)}


def test_texts_that_cannot_be_used(model):
    with_bad = [*TEXTS, "too short", TEXTS[3], ""]
    assert items_of(model, with_bad) == items_of(model)
    assert items_of(model, TEXTS[: NUM_CHOICES - 1]) == []
    assert len(items_of(model, TEXTS[:NUM_CHOICES])) == NUM_CHOICES
    for wrong in ({"num_items": 0}, {"context_tokens": 0}, {"continuation_tokens": -1}):
        values = {"num_items": 1, "context_tokens": 4, "continuation_tokens": 4, **wrong}
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name}: got .*; expected at least 1"):
            make_items(model, TEXTS, **values, seed=0)


def test_scores_equal_a_float64_reference(model):
    items = items_of(model)[:7]
    got = answer_items(model, items)
    exact = type(model.module)(model.module.config)
    exact.load_state_dict(model.module.state_dict())
    exact = exact.double().eval()
    for item, scores in zip(items, got.scores, strict=True):
        for choice, score in zip(item.choices, scores, strict=True):
            with torch.no_grad():
                ids = torch.tensor([item.context + choice])
                log_p = exact(ids).logits[0].log_softmax(-1)
            expected = np.mean([float(log_p[CONTEXT - 1 + i, t]) for i, t in enumerate(choice)])
            assert score == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(got.answers, [item.answer for item in items])
    with pytest.raises(ValueError, match="items: got none"):
        answer_items(model, [])


def test_the_likeliest_continuation_is_chosen():
    scores = np.array([[-2, -1, -3, -4], [-1, -2, -3, -4]], dtype=np.float32)
    result = ClozeScores(scores, np.array([1, 3], dtype=np.int32))
    assert result.correct.tolist() == [True, False]
    assert result.accuracy == 0.5


def test_saved_and_loaded(tmp_path):
    before = cloze([True, False, True])
    before.save(tmp_path)
    after = ClozeScores.load(tmp_path)
    np.testing.assert_array_equal(before.scores, after.scores)
    np.testing.assert_array_equal(before.answers, after.answers)
    (tmp_path / "cloze.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cloze\.npz"):
        ClozeScores.load(tmp_path)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 7), (130, 200), (200, 200)])
def test_accuracy_has_the_wilson_interval(right, n):
    result = compare_cloze(cloze([True] * n), cloze([True] * right + [False] * (n - right)))
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert result["cloze_accuracy"]["value"] == right / n
    assert result["cloze_accuracy"]["low"] == pytest.approx(expected.low, abs=1e-12)
    assert result["cloze_accuracy"]["high"] == pytest.approx(expected.high, abs=1e-12)
    assert result["cloze_accuracy"]["n"] == n


def test_loss_is_paired():
    base = cloze([True] * 60 + [False] * 40)
    worse = cloze([True] * 50 + [False] * 46 + [True] * 4)  # loses 10 items, wins 4
    loss = compare_cloze(base, worse)["cloze_loss"]
    assert loss["value"] == pytest.approx(0.06)
    # Agresti and Min: (6 ± z sqrt(15 - 36 / 102)) / 102
    assert loss["low"] == pytest.approx((6 - 1.959964 * np.sqrt(15 - 36 / 102)) / 102)
    assert loss["high"] == pytest.approx((6 + 1.959964 * np.sqrt(15 - 36 / 102)) / 102)
    gain = compare_cloze(worse, base)["cloze_loss"]
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx(
        (-loss["value"], -loss["high"], -loss["low"])
    )


def test_agreement_on_all_items_is_no_certainty_except_of_a_model_with_itself():
    one = cloze([True] * 60 + [False] * 40)
    other = cloze(one.correct)
    assert compare_cloze(one, one)["cloze_loss"] == {"value": 0, "low": 0, "high": 0, "n": 100}
    loss = compare_cloze(one, other)["cloze_loss"]
    assert loss["value"] == 0
    assert loss["low"] == pytest.approx(-loss["high"])
    assert 0.01 < loss["high"] < 0.03


def test_the_losss_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        # of 200 items 4 % are lost and 2 % won
        change = rng.choice(3, 200, p=[0.04, 0.02, 0.94])
        before = np.where(change == 0, True, np.where(change == 1, False, rng.random(200) < 0.6))
        after = np.where(change == 0, False, np.where(change == 1, True, before))
        loss = compare_cloze(cloze(before), cloze(after))["cloze_loss"]
        covered += loss["low"] <= 0.02 <= loss["high"]
    assert 0.93 * 400 <= covered <= 0.985 * 400


def test_different_items_are_refused(model):
    items = items_of(model)
    with pytest.raises(ValueError, match="answers: differ"):
        compare_cloze(answer_items(model, items[:4]), answer_items(model, items[:5]))
