"""`predictive` never hits much less than LRU, on any stream and at any moment."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from choice_files import load_choice
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.cache.policies.lru import Lru
from capibench.cache.policy_parts.simulated import SimulatedTier
from capibench.config import build
from capibench.errors import ConfigError


@functools.cache
def budgeted(share: float) -> Any:
    return predictive(budget_share=share)


def predictive(**changes: object) -> Any:
    return build(load_choice("cache", "predictive")["policy"] | changes, "cache.policy")


def behind(policy: Any, keys: Iterator[int], capacity: int) -> Iterator[tuple[int, int, int]]:
    """After each access: how many there were, and hits of LRU and of `policy` in all of them."""
    own, lru, sums = SimulatedTier(policy, capacity), OrderedDict[int, None](), [0, 0]
    for num, key in enumerate(keys):
        sums[1] += own.access(b"%d" % key, 1, 1.0, float(num), math.inf)
        sums[0] += key in lru
        lru[key] = None
        lru.move_to_end(key)
        if len(lru) > capacity:
            lru.popitem(last=False)
        yield num + 1, sums[0], sums[1]


@settings(max_examples=30)
@given(
    keys=st.lists(st.integers(0, 24), min_size=50, max_size=400),
    capacity=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.005, 0.05]),
)
def test_on_any_stream_the_bound_holds_after_every_access(
    keys: list[int], capacity: int, share: float
) -> None:
    for num, of_lru, own in behind(budgeted(share), iter(keys), capacity):
        assert of_lru - own <= share * num


def adversary(policy: Any, capacity: int, num: int) -> tuple[int, int]:
    """Hits of LRU and of `policy` where every access asks for what LRU holds and it does not, the
    least recently used first, and for a key of an uneven law where there is nothing such."""
    own, lru, of_lru, hits = SimulatedTier(policy, capacity), OrderedDict[int, None](), 0, 0
    uneven = (np.random.default_rng(7).random(num) ** 2 * 4 * capacity).astype(int).tolist()
    for place in range(num):
        key = next((held for held in lru if b"%d" % held not in own), uneven[place])
        hits += own.access(b"%d" % key, 1, 1.0, float(place), math.inf)
        of_lru += key in lru
        lru[key] = None
        lru.move_to_end(key)
        if len(lru) > capacity:
            lru.popitem(last=False)
    return of_lru, hits


def test_an_adversary_gains_what_the_budget_is_and_no_more() -> None:
    of_lru, hits = adversary(predictive(budget_share=0.02), 40, 2500)
    assert 0.01 * 2500 < of_lru - hits <= 0.02 * 2500
    of_lru, hits = adversary(predictive(budget_share=1.0), 40, 2500)
    assert of_lru - hits > 0.08 * 2500  # that is what it can do where nothing stops it


def test_without_a_budget_nothing_is_risked() -> None:
    keys = np.random.default_rng(5).zipf(1.3, 4000) % 500
    sums = list(behind(predictive(budget_share=0.0), iter(keys.tolist()), 50))
    assert all(of_lru == own for _, of_lru, own in sums)


def test_what_is_won_pays_for_more() -> None:
    """Popularity that does not change: more is risked than the budget alone would pay."""
    ranks = np.random.default_rng(6).random(8_000) ** 3 * 2000
    *_, (_, of_lru, own) = behind(predictive(), iter(ranks.astype(int).tolist()), 200)
    assert own - of_lru > 0.04 * 8_000


def test_seconds_are_bounded_where_they_count() -> None:
    """Every entry of a size, and every tenth key a hundred times as dear as the others."""
    forecasts = load_choice("cache", "predictive")["policy"]["forecasts"]
    for forecast in forecasts.values():
        forecast["score_by"] = "seconds"
    saved = {}
    rng = np.random.default_rng(8)
    keys = np.concatenate([rng.integers(0, 400, 3000), np.arange(3000) // 2 % 150 + 1000])
    bounded = predictive(forecasts=forecasts)
    for name, policy in (("lru", Lru()), ("bounded", bounded)):
        tier, saved[name], at_stake = SimulatedTier(policy, 100), 0.0, 0.0
        for now, key in enumerate(keys.tolist()):
            cost_s = 1.0 if key % 10 else 100.0
            at_stake += cost_s
            saved[name] += cost_s * tier.access(b"%d" % key, 1, cost_s, float(now), math.inf)
    assert saved["bounded"] > saved["lru"] - 0.005 * at_stake


def test_entries_that_are_removed_and_go_stale_and_differ_in_size_are_kept_account_of() -> None:
    """The tier fails at once when a victim is not resident."""
    tier, rng = SimulatedTier(predictive(guard_sample_entries=16), 2000), np.random.default_rng(9)
    for now in range(3000):
        key, size = b"%d" % int(rng.random() ** 2 * 300), int(rng.integers(1, 90))
        if rng.random() < 0.05 and key in tier:
            tier.remove(key)
        expires_s = now + (math.inf if rng.random() < 0.5 else float(rng.integers(1, 400)))
        tier.access(key, size, float(size), float(now), expires_s)
        assert tier.num_bytes <= 2000
    while len(tier):
        tier.remove(tier.policy.victim(4000.0))


@pytest.mark.parametrize(("field", "value"), [("budget_share", 1.5), ("budget_share", -0.1)])
def test_a_wrong_budget_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"cache\.policy\.{field}: got .*; expected"):
        predictive(**{field: value})
