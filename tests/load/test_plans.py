"""Plans are pure functions of seed and questions, and have the distributions that they claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_files import choices
from hypothesis import given
from hypothesis import strategies as st

from capibench.corpus.corpus import QUERY_CLASSES, Question
from capibench.errors import ConfigError
from capibench.load.load import Plan
from capibench.load.popularity import draw, zipf_shares
from capibench.load.streams import LoadStreams
from capibench.records import Phase, Request

MADE_TRACE = str(Path(__file__).parent.parent / "fixtures" / "traces" / "azure_made.csv")
NAMES = choices("load")

QUESTIONS = [
    Question(f"q{i}", f"question {i}", (f"p{i}",), ("a",), QUERY_CLASSES[i % 4], "heldout")
    for i in range(40)
]
Choice = Callable[..., Any]


def made(choice: Choice, name: str, **changes: object) -> Any:
    if name == "replay":
        changes = {"path": MADE_TRACE, **changes}
    return choice("load", name, **changes)


def plan(load: Any, seed: int = 1, repeat: int = 0) -> Plan:
    planned = load.plan(QUESTIONS, LoadStreams.spawn(seed, repeat))
    assert isinstance(planned, Plan)
    return planned


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_plans_a_whole_run(choice: Choice, name: str) -> None:
    load = made(choice, name, num_requests=100, warmup_requests=10)
    planned = plan(load)
    assert (len(planned.warmup), len(planned.measured)) == (10, 100)
    assert [request.id for request in planned.requests] == list(range(110))
    assert {request.phase for request in planned.warmup} == {Phase.WARMUP}
    assert {request.phase for request in planned.measured} == {Phase.MEASURE}
    known = {question.id: question for question in QUESTIONS}
    for request in planned.requests:
        assert request.query == known[request.question_id].text
        assert request.query_class == known[request.question_id].query_class
        assert 1 <= request.priority <= 5
        assert request.max_new_tokens >= 1
        assert request.deadline_s is None
    if load.mode == "open":
        times = [request.intended_s for request in planned.requests]
        assert times == sorted(times)
        assert planned.warmup[-1].intended_s == planned.window_begin_s
        assert planned.closed_loop is None
    else:
        assert {request.intended_s for request in planned.requests} == {None}
        assert planned.closed_loop is not None
        assert len(planned.closed_loop.think_s) == 110
    assert load.describe()["num_requests"] == 100


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_plan_other_seed_or_repeat_another(choice: Choice, name: str) -> None:
    load = made(choice, name, num_requests=50)
    hashes = [
        plan(load, seed, repeat).content_hash for seed, repeat in ((1, 0), (1, 0), (1, 1), (2, 0))
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def column(planned: Plan, name: str) -> list[Any]:
    return [getattr(request, name) for request in planned.measured]


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"priority_mix": {"low": 1.0}}, {"priority"}),
        ({"zipf_exponent": 0.0}, {"question_id", "query", "query_class", "max_new_tokens"}),
        ({"max_new_tokens": dict.fromkeys(QUERY_CLASSES, 7)}, {"max_new_tokens"}),
        ({"deadline_ms": 500}, {"deadline_s"}),
        ({"rate_per_s": 8.0}, {"intended_s"}),
        ({"warmup_requests": 0}, {"id", "intended_s"}),
    ],
)
def test_changing_one_part_moves_nothing_else(
    choice: Choice, changes: dict[str, object], moved: set[str]
) -> None:
    before = plan(choice("load", "poisson"))
    after = plan(choice("load", "poisson", **changes))
    for name in Request.__dataclass_fields__:
        assert (column(before, name) != column(after, name)) == (name in moved), name


def test_a_longer_plan_begins_with_the_shorter_one(choice: Choice) -> None:
    short = plan(choice("load", "poisson", num_requests=50))
    long = plan(choice("load", "poisson", num_requests=80))
    assert long.requests[:70] == short.requests


def test_poisson_golden_and_statistics(choice: Choice) -> None:
    load = choice("load", "poisson", num_requests=20_000, warmup_requests=0, rate_per_s=10.0)
    times = np.array([request.intended_s for request in plan(load).measured])
    assert times[:4] == pytest.approx(
        [0.017713332632643793, 0.08157284091931463, 0.24722196712511005, 0.3428729651741758],
        rel=1e-12,
    )
    gaps = np.diff(times, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.1, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.02)
    counts = np.bincount(times.astype(int))[:-1]  # arrivals per second
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)  # dispersion index


def test_constant_is_exact(choice: Choice) -> None:
    planned = plan(choice("load", "constant", num_requests=3, warmup_requests=2, rate_per_s=4.0))
    assert [request.intended_s for request in planned.requests] == [0.25, 0.5, 0.75, 1.0, 1.25]
    assert planned.window_begin_s == 0.5


def test_closed_loop_think_times(choice: Choice) -> None:
    fixed = plan(choice("load", "closed_loop", think_time="fixed", think_time_ms=30.0))
    assert fixed.closed_loop is not None
    assert set(fixed.closed_loop.think_s) == {0.03}
    load = choice("load", "closed_loop", think_time_ms=30.0, num_requests=20_000)
    drawn = plan(load).closed_loop
    assert drawn is not None
    assert np.mean(drawn.think_s) == pytest.approx(0.03, rel=0.03)
    assert np.std(drawn.think_s) == pytest.approx(0.03, rel=0.03)


@given(st.integers(1, 500), st.floats(0, 3))
def test_zipf_shares(num_items: int, exponent: float) -> None:
    shares = zipf_shares(num_items, exponent)
    assert shares.sum() == pytest.approx(1)
    weights = [1 / rank**exponent for rank in range(1, num_items + 1)]
    assert shares == pytest.approx([weight / sum(weights) for weight in weights])


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=20).filter(lambda shares: sum(shares) > 0.1),
    st.integers(0, 2**32),
)
def test_draw_stays_in_range_and_never_takes_a_share_of_zero(
    shares: list[float], seed: int
) -> None:
    drawn = draw(shares, 50, np.random.default_rng(seed))
    assert all(shares[index] > 0 for index in drawn)


def test_questions_follow_zipf_by_rank(choice: Choice) -> None:
    load = choice("load", "poisson", num_requests=40_000, zipf_exponent=1.0)
    counts = Counter(request.question_id for request in plan(load).measured)
    expected = 40_000 * zipf_shares(len(QUESTIONS), 1.0)
    observed = np.array(sorted(counts.values(), reverse=True))
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 72.1  # 99.9 % of 39 degrees of freedom


def test_warm_up_asks_the_same_popular_questions_by_draws_of_its_own(choice: Choice) -> None:
    load = choice("load", "poisson", num_requests=4000, warmup_requests=4000, zipf_exponent=1.2)
    planned = plan(load)
    warm, measured = (
        Counter(request.question_id for request in part)
        for part in (planned.warmup, planned.measured)
    )
    assert warm.most_common(1)[0][0] == measured.most_common(1)[0][0]
    assert warm != measured


def test_shares_of_classes_and_priorities(choice: Choice) -> None:
    load = choice(
        "load",
        "poisson",
        num_requests=40_000,
        class_mix={"short": 3, "coding": 1},
        max_new_tokens={"short": 5, "coding": 9},
        deadline_ms={"short": 250, "coding": None},
    )
    planned = plan(load).measured
    classes = Counter(request.query_class for request in planned)
    assert set(classes) == {"short", "coding"}
    assert classes["short"] / 40_000 == pytest.approx(0.75, abs=0.01)
    for request in planned:
        assert request.max_new_tokens == (5 if request.query_class == "short" else 9)
        assert request.deadline_s == (0.25 if request.query_class == "short" else None)
    priorities = Counter(request.priority for request in planned)
    for priority, share in zip(range(1, 6), (0.1, 0.2, 0.5, 0.15, 0.05), strict=True):
        assert priorities[priority] / 40_000 == pytest.approx(share, abs=0.01)


def test_within_a_class_the_popularity_is_zipf_too(choice: Choice) -> None:
    load = choice("load", "poisson", num_requests=20_000, class_mix={"long": 1.0})
    counts = Counter(request.question_id for request in plan(load).measured)
    expected = 20_000 * zipf_shares(10, 1.0)
    assert sorted(counts.values(), reverse=True) == pytest.approx(expected, rel=0.15)


def test_classes_that_do_not_fit_the_questions_are_named(choice: Choice) -> None:
    with pytest.raises(ConfigError, match=r"load\.class_mix\.poem: got 1\.0, but no question"):
        plan(choice("load", "poisson", class_mix={"poem": 1.0}))
    with pytest.raises(
        ConfigError, match=r"load\.max_new_tokens\.(technical|long|coding): missing"
    ):
        plan(choice("load", "poisson", max_new_tokens={"short": 1}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("poisson", {"rate_per_s": 0}, "load.rate_per_s: got 0.0; expected above 0"),
        ("constant", {"rate_per_s": -1}, "load.rate_per_s: got -1.0; expected above 0"),
        ("poisson", {"num_requests": 0}, "load.num_requests: got 0; expected at least 1"),
        ("poisson", {"warmup_requests": -1}, "load.warmup_requests: got -1; expected at least 0"),
        ("poisson", {"zipf_exponent": -0.5}, "load.zipf_exponent: got -0.5; expected at least 0"),
        ("poisson", {"deadline_ms": 0}, "load.deadline_ms: got 0.0; expected above 0, or null"),
        ("poisson", {"max_new_tokens": {"short": 0}}, "load.max_new_tokens.short: got 0; expected"),
        ("poisson", {"priority_mix": {"urgent": 1}}, "load.priority_mix: got 'urgent'; expected"),
        ("poisson", {"priority_mix": {"low": 0}}, "load.priority_mix: got {'low': 0.0}; expected"),
        ("poisson", {"class_mix": {"short": -1}}, "load.class_mix.short: got -1.0; expected"),
        ("poisson", {"questions": "some"}, "load.questions: got 'some'; expected one of heldout"),
        ("closed_loop", {"num_users": 0}, "load.num_users: got 0; expected at least 1"),
        ("closed_loop", {"think_time_ms": -1}, "load.think_time_ms: got -1.0; expected at least 0"),
        (
            "replay",
            {"path": "t.csv", "time_scale": 0},
            "load.time_scale: got 0.0; expected above 0",
        ),
        ("replay", {"path": "t.csv", "start_s": -1}, "load.start_s: got -1.0; expected at least 0"),
        (
            "replay",
            {"path": "t.csv", "max_new_tokens_cap": 0},
            "load.max_new_tokens_cap: got 0; expected at least",
        ),
    ],
)
def test_senseless_values_are_refused(
    choice: Choice, name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        choice("load", name, **changes)
    assert str(raised.value).startswith(message)


def test_the_hash_sees_every_field(choice: Choice) -> None:
    planned = plan(choice("load", "poisson", num_requests=5, warmup_requests=0))
    for name, value in (("query", "other"), ("priority", 9), ("intended_s", 0.5)):
        first = replace(planned.measured[0], **{name: value})
        changed = replace(planned, measured=(first, *planned.measured[1:]))
        assert changed.content_hash != planned.content_hash
