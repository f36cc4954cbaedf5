"""Fronts, best by axis and balance over known numbers: noise decides nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.errors import ConfigError
from capibench.measure.stats import Estimate, pareto_front
from capibench.quantization.comparison import (
    DEFAULT_BALANCE,
    Axis,
    Candidate,
    axes,
    rank,
    surely_better,
)

AXES = axes(DEFAULT_BALANCE)
PERPLEXITY, SPEED, MEMORY = (axis.name for axis in AXES)


def exact(value):
    return Estimate(value, value, value)


def about(value, share=0.1):
    return Estimate(value, value * (1 - share), value * (1 + share))


def method(name, perplexity, speed, memory):
    return Candidate(name, {PERPLEXITY: perplexity, SPEED: speed, MEMORY: memory})


NONE = method("none", exact(1.0), exact(1.0), exact(1.0))
INT8 = method("int8", Estimate(1.001, 1.0, 1.002), Estimate(1.4, 1.3, 1.5), exact(1.9))
INT4 = method("int4", Estimate(1.006, 1.004, 1.008), Estimate(2.2, 2.0, 2.4), exact(2.9))
WORSE = method("worse", Estimate(1.5, 1.4, 1.6), Estimate(0.5, 0.4, 0.6), exact(0.9))


def test_a_beaten_method_is_not_on_the_front():
    ranking = rank([NONE, INT8, INT4, WORSE], AXES)
    assert ranking.pareto_front == ("none", "int8", "int4")
    assert ranking.best_by_axis[SPEED].name == "int4"
    assert ranking.best_by_axis[SPEED].ties == ()
    assert ranking.best_by_axis[MEMORY].name == "int4"
    # int8's interval begins at the baseline's own value: not told apart.
    assert ranking.best_by_axis[PERPLEXITY].name == "none"
    assert ranking.best_by_axis[PERPLEXITY].ties == ("int8",)
    assert ranking.unranked == {}


def test_noise_keeps_nobody_off_the_front():
    slower = method("slower", exact(1.0), Estimate(1.9, 1.7, 2.1), exact(2))
    faster = method("faster", exact(1.0), Estimate(2.0, 1.8, 2.2), exact(2))
    assert rank([slower, faster], AXES).pareto_front == ("slower", "faster")
    assert rank([slower, faster], AXES).best_by_axis[SPEED].ties == ("slower",)
    much = method("much", exact(1.0), Estimate(4.0, 3.8, 4.2), exact(2))
    assert rank([slower, faster, much], AXES).pareto_front == ("much",)


def test_equal_methods_are_all_on_the_front_and_tie():
    ranking = rank([method(name, exact(1), exact(2), exact(3)) for name in "abc"], AXES)
    assert ranking.pareto_front == ("a", "b", "c")
    assert ranking.balanced.ties == ("b", "c")
    assert ranking.best_by_axis[MEMORY].ties == ("b", "c")


def test_an_unmeasured_value_ranks_nowhere_but_on_what_was_measured():
    fast = method("fast", None, exact(9), exact(1))
    ranking = rank([NONE, fast], AXES)
    assert ranking.unranked == {"fast": f"not measured: {PERPLEXITY}"}
    assert ranking.pareto_front == ("none",)
    assert ranking.best_by_axis[SPEED].name == "fast"
    assert ranking.balanced.name == "none"
    nobody = rank([method("fast", None, exact(9), exact(1))], AXES)
    assert nobody.balanced is None
    assert nobody.pareto_front == ()
    assert PERPLEXITY not in nobody.best_by_axis


def test_a_value_without_an_interval_is_told_apart_from_nothing():
    lucky = method("lucky", exact(1), Estimate(50), exact(1))
    ranking = rank([NONE, lucky], AXES)
    assert ranking.best_by_axis[SPEED].ties == ("none",)
    assert ranking.pareto_front == ("none", "lucky")
    assert ranking.balanced.ties == ("none",)
    assert "no interval" in ranking.balanced.reason


def test_weights_decide_the_balance():
    accurate = rank([NONE, INT4], axes({"accuracy": 1000, "speed": 1, "memory": 1}))
    assert accurate.balanced.name == "none"
    default = rank([NONE, INT4], AXES)
    assert default.balanced.name == "int4"
    assert default.balanced.score == pytest.approx(
        -10 * math.log(1.006) + math.log(2.2) + math.log(2.9)
    )
    assert default.balanced.scores["none"] == 0
    assert default.balanced.ties == ()
    for part in ("int4", "2.2 (2 to 2.4)", "weight 10"):
        assert part in default.balanced.reason


def test_a_tie_in_the_balance_is_named():
    twin = method("twin", Estimate(1.006, 1.004, 1.008), Estimate(2.15, 1.9, 2.4), exact(2.9))
    balanced = rank([INT4, twin, NONE], AXES).balanced
    assert (balanced.name, balanced.ties) == ("int4", ("twin",))
    assert "not told apart from twin" in balanced.reason


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ({"accuracy": 1, "speed": 1}, "balance: got .* expected weights of accuracy, speed, mem"),
        ({"accuracy": -1, "speed": 1, "memory": 1}, "from 0 up"),
        ({"accuracy": 0, "speed": 0, "memory": 0}, "one above 0"),
        ({"accuracy": math.nan, "speed": 1, "memory": 1}, "from 0 up"),
    ],
)
def test_wrong_weights(balance, message):
    with pytest.raises(ConfigError, match=message):
        axes(balance)


def test_wrong_candidates():
    with pytest.raises(ValueError, match="each name once"):
        rank([NONE, NONE], AXES)
    with pytest.raises(ValueError, match="decode_speedup: got 0 for zero; expected a ratio above"):
        rank([method("zero", exact(1), exact(0), exact(1))], AXES)
    with pytest.raises(ValueError, match="weight: got -1"):
        Axis("speed", "higher", -1)


ratios = st.floats(0.1, 10)
shares = st.floats(0, 0.5)
methods = st.lists(
    st.builds(lambda *v: v, ratios, shares, ratios, shares, ratios), min_size=1, max_size=8
).map(
    lambda rows: [
        method(f"m{i}", about(p, a), about(s, b), exact(m))
        for i, (p, a, s, b, m) in enumerate(rows)
    ]
)


@given(methods)
def test_the_front_holds_the_plain_front_and_is_never_empty(candidates):
    ranking = rank(candidates, AXES)
    points = [[c.values[axis.name].value for axis in AXES] for c in candidates]
    plain = pareto_front(points, [axis.better for axis in AXES])
    assert ranking.pareto_front
    assert {c.name for c, on in zip(candidates, plain, strict=True) if on} <= set(
        ranking.pareto_front
    )


@given(methods)
def test_what_is_left_off_the_front_is_surely_worse_than_somebody_on_an_axis(candidates):
    ranking = rank(candidates, AXES)
    for one in candidates:
        if one.name not in ranking.pareto_front:
            assert any(
                surely_better(other.values[axis.name], one.values[axis.name], axis)
                for other in candidates
                for axis in AXES
            )


@given(methods, st.randoms())
def test_order_does_not_matter(candidates, random):
    shuffled = list(candidates)
    random.shuffle(shuffled)
    one, other = rank(candidates, AXES), rank(shuffled, AXES)
    assert set(one.pareto_front) == set(other.pareto_front)
    assert one.balanced.score == other.balanced.score
    for axis in AXES:
        assert one.best_by_axis[axis.name].value == other.best_by_axis[axis.name].value


@given(methods, st.floats(0.1, 10))
def test_who_else_is_there_does_not_change_a_score(candidates, factor):
    alone = rank(candidates[:1], AXES).balanced
    assert rank(candidates, AXES).balanced.scores[alone.name] == alone.score
