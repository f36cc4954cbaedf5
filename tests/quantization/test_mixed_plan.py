"""Plans for mixed precision keep their budget, refuse what cannot be and are near the best."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.quantization.mixed_plan import Option, plan_mixed

DAMAGES = st.one_of(st.just(0.0), st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.3, 0.1 + 0.2]))
OPTIONS = st.builds(Option, size_bytes=st.integers(0, 60), damage=DAMAGES)
LAYERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.dictionaries(st.sampled_from([2, 3, 4, 8, 16]), OPTIONS, min_size=1),
    min_size=1,
)


def every_plan(layers):
    """(bytes, damage) of all combinations."""
    for choice in itertools.product(*(widths.values() for widths in layers.values())):
        yield sum(o.size_bytes for o in choice), math.fsum(o.damage for o in choice)


def check(layers, plan):
    assert plan.bits.keys() == layers.keys()
    chosen = [layers[name][bits] for name, bits in plan.bits.items()]
    assert plan.size_bytes == sum(option.size_bytes for option in chosen)
    assert plan.damage == math.fsum(option.damage for option in chosen)


@given(LAYERS, st.integers(0, 250))
def test_bytes_are_kept_whenever_they_can_be(layers, budget):
    least = min(size for size, _ in every_plan(layers))
    if budget < least:
        with pytest.raises(ValueError, match=f"max_bytes: got {budget}; expected at least {least}"):
            plan_mixed(layers, budget, None)
        return
    plan = plan_mixed(layers, budget, None)
    check(layers, plan)
    assert plan.size_bytes <= budget
    # Not the optimum, but less than one step of one layer away from it.
    best = min(damage for size, damage in every_plan(layers) if size <= budget)
    spreads = (
        max(o.damage for o in widths.values()) - min(o.damage for o in widths.values())
        for widths in layers.values()
    )
    assert best <= plan.damage <= best + max(spreads) + 1e-12


@given(LAYERS, st.floats(0, 4))
def test_damage_is_kept_whenever_it_can_be(layers, budget):
    least = min(damage for _, damage in every_plan(layers))
    if budget < least:
        with pytest.raises(ValueError, match=r"max_damage: got .* nats; expected at least"):
            plan_mixed(layers, None, budget)
        return
    plan = plan_mixed(layers, None, budget)
    check(layers, plan)
    assert plan.damage <= budget


@given(LAYERS, st.lists(st.integers(0, 250), min_size=2), st.lists(st.floats(0, 4), min_size=2))
def test_more_budget_is_never_worse(layers, sizes, damages):
    least_bytes = min(size for size, _ in every_plan(layers))
    plans = [plan_mixed(layers, size, None) for size in sorted(sizes) if size >= least_bytes]
    assert [p.damage for p in plans] == sorted((p.damage for p in plans), reverse=True)
    least = min(damage for _, damage in every_plan(layers))
    plans = [plan_mixed(layers, None, x) for x in sorted(damages) if x >= least]
    assert [p.size_bytes for p in plans] == sorted((p.size_bytes for p in plans), reverse=True)


@given(LAYERS)
def test_both_ends(layers):
    unlimited = plan_mixed(layers, 10**9, None)
    assert unlimited.damage == min(damage for _, damage in every_plan(layers))
    smallest = plan_mixed(layers, None, 10.0)
    assert smallest.size_bytes == min(size for size, _ in every_plan(layers))


def test_the_layer_that_hurts_least_per_byte_goes_first():
    def layer(size, damage):
        return {8: Option(2 * size, 0.0), 4: Option(size, damage)}

    layers = {"hurts": layer(100, 1.0), "small": layer(10, 0.05), "large": layer(100, 0.1)}
    assert plan_mixed(layers, 420, None).bits == {"hurts": 8, "small": 8, "large": 8}
    assert plan_mixed(layers, 419, None).bits == {"hurts": 8, "small": 8, "large": 4}
    assert plan_mixed(layers, 310, None).bits == {"hurts": 8, "small": 4, "large": 4}
    assert plan_mixed(layers, 309, None).bits == {"hurts": 4, "small": 4, "large": 4}
    assert plan_mixed(layers, None, 0.99).bits == {"hurts": 8, "small": 4, "large": 4}
    assert plan_mixed(layers, None, 0.0).bits == {"hurts": 8, "small": 8, "large": 8}


def test_a_width_that_is_never_worth_it_is_not_chosen():
    widths = {8: Option(80, 0.0), 4: Option(40, 0.1), 3: Option(38, 0.9), 2: Option(20, 1.0)}
    chosen = {plan_mixed({"a": widths}, size, None).bits["a"] for size in range(20, 90)}
    assert chosen == {8, 4, 2}


@pytest.mark.parametrize(
    ("layers", "budgets", "message"),
    [
        ({"a": {4: Option(1, 0.1)}}, (None, None), "expected exactly one"),
        ({"a": {4: Option(1, 0.1)}}, (5, 0.1), "expected exactly one"),
        ({"a": {}}, (5, None), "a has none; expected at least one bit width"),
        ({"a": {4: Option(-1, 0.1)}}, (5, None), "a at 4 bits: got -1 bytes"),
        ({"a": {4: Option(1, math.nan)}}, (5, None), "a at 4 bits: got 1 bytes and damage nan"),
        ({"a": {4: Option(1, math.inf)}}, (5, None), "both finite"),
        ({"a": {4: Option(1, 0.1)}}, (None, math.nan), "max_damage: got nan"),
    ],
)
def test_what_cannot_be_planned_is_refused(layers, budgets, message):
    with pytest.raises(ValueError, match=message):
        plan_mixed(layers, *budgets)
