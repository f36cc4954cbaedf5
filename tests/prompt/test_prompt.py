"""Both prompt forms show the question and the first top_k passages, cut, and read answers back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.prompt.plain import PlainPrompt
from capibench.prompt.tagged import TaggedPrompt

texts = st.text(max_size=50)


def test_tagged_prompt_has_the_form_that_the_model_was_trained_on() -> None:
    prompt = TaggedPrompt(top_k=2, passage_chars=4)
    assert prompt.render("why?", ["abcdef", "gh", "never shown"]) == (
        "<|passage|>abcd\n<|passage|>gh\n<|question|>why?\n<|answer|>"
    )


def test_tagged_prompt_without_passages_still_asks() -> None:
    assert TaggedPrompt(3, 360).render("why?", []) == "<|question|>why?\n<|answer|>"


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        ("json.dumps(obj)<|end|>noise", "json.dumps(obj)"),
        (" json.dumps(obj)\nmore", "json.dumps(obj)"),
        ("json.dumps(obj)<|question|>next", "json.dumps(obj)"),
        ("<|end|>", ""),
        ("", ""),
    ],
)
def test_tagged_answer_ends_at_the_first_tag_or_line_end(generated: str, answer: str) -> None:
    assert TaggedPrompt(3, 360).extract_answer(generated) == answer


@given(question=texts, passages=st.lists(texts | st.just("<|answer|>"), max_size=5))
def test_text_never_becomes_structure(question: str, passages: list[str]) -> None:
    rendered = TaggedPrompt(top_k=3, passage_chars=30).render(question, passages)
    assert rendered.count("<|passage|>") == min(3, len(passages))
    assert rendered.count("<|question|>") == rendered.count("<|answer|>") == 1
    assert rendered.endswith("<|answer|>")


def test_plain_prompt_numbers_the_passages_and_ends_where_the_answer_begins() -> None:
    rendered = PlainPrompt(top_k=2, passage_chars=3).render("why?", ["abcd", "ef", "never shown"])
    assert "Passage 1: abc\n" in rendered
    assert "Passage 2: ef\n" in rendered
    assert "never shown" not in rendered
    assert rendered.endswith("Question: why?\nAnswer:")


def test_plain_answer_is_the_first_line() -> None:
    assert PlainPrompt(3, 360).extract_answer("\n 42, as ever. \nQuestion: next?") == "42, as ever."


@pytest.mark.parametrize("name", ["tagged", "plain"])
@pytest.mark.parametrize(("field", "value"), [("top_k", 0), ("passage_chars", 0)])
def test_impossible_values_are_refused_by_name(
    choice: Callable[..., Any], name: str, field: str, value: int
) -> None:
    with pytest.raises(ValueError, match=f"prompt.{field}: got {value}"):
        choice("prompt", name, **{field: value})
