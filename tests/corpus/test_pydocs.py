"""A made source tree becomes the passages and questions that its docstrings imply."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.corpus.corpus import Corpus, split_of
from capibench.corpus.pydocs import DocObject, PyDocs, harvest, split_docstring
from capibench.errors import DataError

BODY = "It goes on to say how, at some length, so that the passage has something to retrieve."


def pydocs(**changes: Any) -> PyDocs:
    values: dict[str, Any] = {
        "packages": ["stdlib"],
        "heldout_fraction": 0.25,
        "min_summary_words": 3,
        "max_summary_words": 40,
        "min_body_chars": 20,
        "max_head_chars": 60,
        "max_passages": None,
    }
    return PyDocs(**{**values, **changes})


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / (name.replace("__slash__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return root


def corpus_of(root: Path, **changes: Any) -> Corpus:
    choice = pydocs(**changes)
    return choice.assemble(harvest("made", "1.0", root, choice.max_head_chars), {"made": "1.0"}, 1)


def heads(objects: list[DocObject]) -> list[str]:
    return [o.head for o in objects]


def test_a_documented_function_becomes_one_passage_and_its_question(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        shop=f'''
        def price(item: str, *, tax: float = 0.2) -> float:
            """Compute the price of one item.

            {BODY}
            """
        ''',
    )
    corpus = corpus_of(root)
    (passage,) = corpus.passages
    (question,) = corpus.questions
    assert passage.text == f"made.shop.price(item, *, tax=0.2)\n{BODY}"
    assert (passage.title, passage.group) == ("made.shop.price", "made.shop")
    assert question.text == "Compute the price of one item."
    assert question.relevant == (passage.id,)
    assert question.answers == ("made.shop.price(item, *, tax=0.2)",)
    assert question.query_class == "short"
    assert corpus.manifest["content_hash"] == corpus.content_hash


def test_only_what_is_public_and_documented_is_harvested(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        a='''
        def _hidden():
            """Not part of the interface."""
        def bare():
            return 1
        class Box:
            """Holds one thing."""
            def __init__(self, thing, size=2):
                """Make a box."""
            def open(self, /, force=False):
                """Open the box."""
            class Lid:
                """Covers the box."""
        def outer():
            """Define a function inside."""
            def inner():
                """Cannot be reached."""
        ''',
        _private='def f():\n    """Not importable by name."""\n',
        tests__slash__t='def f():\n    """Documents a test."""\n',
        pkg__slash____init__='def g(*args, **kwargs):\n    """Takes anything at all."""\n',
        broken="def f(:\n",
    )
    assert heads(harvest("made", "1.0", root, 60)) == [
        "made.a.Box(thing, size=2)",
        "made.a.Box.open(force=False)",
        "made.a.Box.Lid",
        "made.a.outer()",
        "made.pkg.g(*args, **kwargs)",
    ]


def test_nothing_is_imported_and_bad_escapes_do_not_warn(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        trap='raise SystemExit("imported")\nX = "\\d"\ndef f():\n    """Is never run at all."""\n',
    )
    before = set(sys.modules)
    assert heads(harvest("made", "1.0", root, 60)) == ["made.trap.f()"]
    assert not {name for name in set(sys.modules) - before if name.startswith("made")}


def test_a_long_signature_loses_its_defaults_and_then_its_parameters(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        m='''
        def f(alpha="a long default value", beta="another long value"):
            """Keep the names only."""
        def g(a_very_long_parameter_name_indeed, another_very_long_parameter_name):
            """Keep nothing but dots."""
        ''',
    )
    assert heads(harvest("made", "1.0", root, 40)) == ["made.m.f(alpha, beta)", "made.m.g(...)"]


def test_identical_bodies_are_one_passage_that_answers_both_questions(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        m=f'''
        def first():
            """Do the first of two things.

            {BODY}
            """
        def second():
            """Do the second of two things.

            {BODY}
            """
        ''',
    )
    corpus = corpus_of(root)
    (passage,) = corpus.passages
    assert [q.relevant for q in corpus.questions] == [(passage.id,)] * 2
    assert [q.answers for q in corpus.questions] == [
        ("made.m.first()",),
        ("made.m.second()", "made.m.first()"),
    ]
    assert corpus.manifest["num_merged"] == 1


def test_unfair_questions_are_dropped_and_counted(tmp_path: Path) -> None:
    def function(name: str, summary: str, body: str) -> str:
        return f'def {name}():\n    """{summary}\n\n    {body}\n    """\n'

    root = tree(
        tmp_path,
        m=function("a", "Return the name of it.", BODY + " A.")
        + function("b", "Return the  name of it.", BODY + " B.")
        + function("c", "Too short.", BODY + " C.")
        + function("d", "Has hardly any body text.", "See a.")
        + function("e", "Say it again and again.", BODY + " SAY it\n    again and again!")
        + function("f", "Stay as the fair one.", BODY + " F."),
    )
    corpus = corpus_of(root)
    assert [q.text for q in corpus.questions] == ["Stay as the fair one."]
    assert len(corpus.passages) == 6
    assert corpus.manifest["num_dropped_questions"] == {
        "given_away": 1,
        "repeated_summary": 2,
        "short_body": 1,
        "summary_length": 1,
    }


def test_max_passages_takes_the_first(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        m="".join(
            f'def f{i}():\n    """Do thing {i}.\n\n    {BODY} {i}\n    """\n' for i in range(5)
        ),
    )
    whole, part = corpus_of(root), corpus_of(root, max_passages=2)
    assert part.passages == whole.passages[:2]
    assert part.questions == whole.questions[:2]
    assert part.content_hash != whole.content_hash


def test_ids_are_stable_and_depend_on_the_version(tmp_path: Path) -> None:
    root = tree(tmp_path, m='def f():\n    """Do one thing."""\n')
    (one,), (same,) = harvest("made", "1.0", root, 60), harvest("made", "1.0", root, 60)
    (newer,) = harvest("made", "1.1", root, 60)
    assert one.id == same.id
    assert one.id != newer.id
    assert one.id == "5103baa09881f76a"


def test_the_standard_library_has_fair_questions_in_both_splits(
    choice: Callable[..., Any],
) -> None:
    corpus = choice("corpus", "pydocs").load()
    again = choice("corpus", "pydocs").load()
    assert corpus == again
    assert len(corpus.passages) > 1000
    text_of = {p.id: " ".join(p.text.split()).casefold() for p in corpus.passages}
    assert len(text_of) == len(corpus.passages)
    for question in corpus.questions:
        for passage_id in question.relevant:
            assert " ".join(question.text.split()).casefold() not in text_of[passage_id]
    heldout, train = corpus.questions_in("heldout"), corpus.questions_in("train")
    assert len(heldout) > 100
    assert len(heldout) + len(train) == len(corpus.questions_in("all"))
    assert {q.query_class for q in heldout} == {"short", "technical", "long", "coding"}
    with pytest.raises(ValueError, match="split: got 'test'"):
        corpus.questions_in("test")


def test_an_installed_package_is_found_without_being_imported(choice: Callable[..., Any]) -> None:
    # A package that nothing in this test session has a reason to import.
    corpus = choice("corpus", "pydocs", packages=["alembic"])
    loaded = corpus.load()
    assert {p.title.partition(".")[0] for p in loaded.passages} == {"alembic"}
    assert loaded.manifest["packages"] == corpus.source_key()["packages"]


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(DataError, match="'no_such_package' has no Python source here"):
        pydocs(packages=["no_such_package"]).load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packages", []),
        ("heldout_fraction", 1.5),
        ("min_summary_words", 0),
        ("max_summary_words", 2),
        ("min_body_chars", 0),
        ("max_head_chars", 5),
        ("max_passages", 0),
    ],
)
def test_impossible_values_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: got "):
        pydocs(**{field: value})


@given(st.text())
def test_summary_and_body_together_are_the_docstring(docstring: str) -> None:
    summary, body = split_docstring(docstring)
    assert summary == " ".join(summary.split())
    if docstring.isascii() and docstring.isprintable():
        assert f"{summary} {body}".split() == docstring.split()


@given(st.text(max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_adds_to_the_held_out(group: str, a: float, b: float) -> None:
    small, large = sorted((a, b))
    if split_of(group, small) == "heldout":
        assert split_of(group, large) == "heldout"


def test_the_split_is_the_same_on_every_machine() -> None:
    assert [
        m
        for m in ("json", "heapq", "ast", "asyncio.queues", "csv")
        if split_of(m, 0.25) == "heldout"
    ] == ["json", "asyncio.queues"]
