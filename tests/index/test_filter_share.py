"""Where a filtered search turns from the structure to a scan. No clock is asked here: costs are
given as functions of the share, or the share is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.index.allowed import Allowed
from capibench.index.filter_share import quickest_s, scanned_share


@given(st.floats(0.05, 200.0))
def test_the_two_meet_there(times_as_fast: float) -> None:
    """A scan costs the share, a structure 1 / share of what it costs without a filter."""

    def lead(share: float) -> float:
        return share / (1 / (times_as_fast * share))

    share = scanned_share(lead, 1e-3)
    if lead(1.0) <= 1.1:
        assert share == 1.0
    else:
        assert lead(share) == pytest.approx(1.1, rel=1e-6)


def test_a_structure_that_always_wins_is_asked_down_to_the_least_share() -> None:
    asked = []

    def lead(share: float) -> float:
        asked.append(share)
        return 2.0

    assert scanned_share(lead, 0.2) == 0.2
    assert asked == [1.0, 0.5, 0.25]


def test_a_tie_goes_to_the_scan() -> None:
    assert scanned_share(lambda _: 1.05, 0.01) == 1.0


def test_both_are_called_equally_often() -> None:
    calls: list[str] = []
    one, other = quickest_s(lambda: calls.append("one"), lambda: calls.append("other"))
    assert one >= 0
    assert other >= 0
    assert calls == ["one", "other"] * (len(calls) // 2)
    assert len(calls) >= 8


@pytest.mark.parametrize("name", ["pq", "sq8"])
def test_a_measured_choice_answers_like_either(choice: Callable[..., Any], name: str) -> None:
    """Whatever the clock says, an answer is that of the structure or of a scan, and right."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((2500, 16)).astype(np.float32)
    queries = generator.standard_normal((5, 16)).astype(np.float32)
    ids = np.arange(2500)
    allowed = Allowed(ids[generator.random(2500) < 0.6])
    answers = {}
    for share in (None, 0.0, 1.0):
        index = choice("index", name, exact_filter_share=share)
        index.build(vectors, ids)
        index.remove(ids[:100])
        answers[share], _ = index.search(queries, 10, allowed)
        assert np.isin(answers[share], allowed.ids[allowed.ids >= 100]).all()
    assert any(np.array_equal(answers[None], answers[share]) for share in (0.0, 1.0))
