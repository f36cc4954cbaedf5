"""The answer scores: known values, and what must hold for any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.model.answers import exact_match, normalise, token_f1

words = st.lists(st.sampled_from(["json", "dumps", "obj", "a"]), min_size=1, max_size=6)


def test_punctuation_and_case_do_not_count() -> None:
    assert normalise("Json.dumps(obj, *, sort_keys=False)") == [
        "json",
        "dumps",
        "obj",
        "sort",
        "keys",
        "false",
    ]
    assert exact_match("JSON.dumps( obj )", ["json.dumps(obj)"]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("json.dumps(obj)", "json.dumps(obj)", 1.0),
        ("json.loads(s)", "json.dumps(obj)", 1 / 3),
        ("json json json", "json.dumps", 2 / 5),  # a repeated word counts as often as it stands
        ("os.path", "json.dumps", 0.0),
        ("", "json.dumps", 0.0),
        ("()", "json.dumps", 0.0),
        ("", "()", 1.0),
    ],
)
def test_known_values(prediction: str, reference: str, f1: float) -> None:
    assert token_f1(prediction, [reference]) == pytest.approx(f1)


def test_the_best_reference_counts() -> None:
    assert token_f1("b", ["a", "b"]) == 1.0
    assert exact_match("b", ["a", "b"]) == 1.0


@pytest.mark.parametrize("score", [token_f1, exact_match])
def test_a_score_needs_a_reference(score: object) -> None:
    assert callable(score)
    with pytest.raises(ValueError, match="references is empty"):
        score("a", [])


@given(a=words, b=words)
def test_f1_is_symmetric_bounded_and_blind_to_order(a: list[str], b: list[str]) -> None:
    f1 = token_f1(" ".join(a), [" ".join(b)])
    assert 0.0 <= f1 <= 1.0
    assert f1 == token_f1(" ".join(b), [" ".join(a)])
    assert f1 == token_f1(".".join(reversed(a)), [" ".join(b)])
    assert exact_match(" ".join(a), [" ".join(b)]) <= f1


@given(a=words)
def test_an_answer_agrees_with_itself(a: list[str]) -> None:
    assert token_f1(" ".join(a), [" ".join(a)]) == exact_match(" ".join(a), [" ".join(a)]) == 1.0
