"""`adaptive` and `predictive`: who decides when, what that costs, and what the residents see of it;
and the bounds that all choices of the tree keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from choice_files import choices, load_choice

from capibench.cache.policies.adaptive import Adaptive
from capibench.cache.policies.arc import Arc
from capibench.cache.policies.gdsf import Gdsf
from capibench.cache.policies.lru import Lru
from capibench.cache.policies.s3_fifo import S3Fifo
from capibench.cache.policies.sieve import Sieve
from capibench.cache.policies.ttl import Ttl
from capibench.cache.policy_parts.simulated import SimulatedTier
from capibench.config import build
from capibench.errors import ConfigError, ImpossibleCombination
from capibench.load.popularity import draw, zipf_shares

POLICIES = [name for name in choices("cache") if name not in ("none", "belady")]


def policy(name: str, **changes: object) -> Any:
    node = load_choice("cache", name)["policy"]
    return build(node | changes, "cache.policy")


def hits(prototype: Any, keys: Sequence[int], capacity: int) -> tuple[list[bool], SimulatedTier]:
    tier = SimulatedTier(prototype, capacity)
    found = [tier.access(b"%d" % key, 1, 1.0, float(now), math.inf) for now, key in enumerate(keys)]
    return found, tier


def ratio(prototype: Any, keys: Sequence[int], capacity: int) -> float:
    return float(np.mean(hits(prototype, keys, capacity)[0]))


def zipf(num_keys: int, num: int, exponent: float, seed: int) -> np.ndarray:
    return draw(zipf_shares(num_keys, exponent), num, np.random.default_rng(seed))


def remembered(thing: object, seen: set[int]) -> int:
    """Items in all containers that can be reached from `thing`."""
    if id(thing) in seen or isinstance(thing, str | bytes | int | float | type(None)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, bytearray):
        return len(thing)
    if isinstance(thing, dict):
        return len(thing) + sum(remembered(item, seen) for item in thing.values())
    if isinstance(thing, list | tuple | set):
        return len(thing) + sum(remembered(item, seen) for item in thing)
    fields = [*getattr(thing, "__dict__", {}).values()]
    # A queue's links are not followed: whoever is in it is in a table too.
    slots = [
        slot for slot in getattr(type(thing), "__slots__", ()) if slot not in ("newer", "older")
    ]
    return sum(
        remembered(item, seen) for item in [*fields, *(getattr(thing, s, None) for s in slots)]
    )


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_remembered_is_bounded_by_what_fits(name: str) -> None:
    tier = SimulatedTier(policy(name), 100)
    most = []
    for now in range(12_000):
        tier.access(b"%d" % (now * 7 % 11_003), 1, 1.0, float(now), math.inf)
        if now in (3_000, 11_999):
            most.append(remembered(tier.policy, set()))
    assert most[1] <= most[0] * 1.1 + 100
    # Sketches of five experts, each with 16 counters per entry, are the most.
    assert most[1] <= 100 * 100


@pytest.mark.parametrize("name", POLICIES)
def test_every_choice_is_refused_with_an_unknown_knob(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.policy\.knob: unknown key"):
        policy(name, knob=1)


def test_belady_is_refused_in_a_run_and_says_where_it_can_be_used() -> None:
    with pytest.raises(ImpossibleCombination, match=r"cache: belady .*capibench replay-cache"):
        build(load_choice("cache", "belady"), "cache")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("s3_fifo", "small_share", 0.0),
        ("s3_fifo", "promote_reads", 4),
        ("w_tinylfu", "window_share", 1.5),
        ("w_tinylfu", "protected_share", -0.1),
        ("w_tinylfu", "sample_factor", 0),
        ("adaptive", "sample_entries", 15),
        ("adaptive", "half_life_turnovers", 0.0),
        ("adaptive", "standard_errors", -1.0),
        ("adaptive", "margin", math.inf),
        ("adaptive", "experts", {}),
        ("predictive", "forecasts", {}),
        ("predictive", "guard_sample_entries", 1),
        ("predictive", "guard_standard_errors", -1.0),
    ],
)
def test_a_wrong_value_is_named(name: str, field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"cache\.policy\.{field}: got .*; expected"):
        policy(name, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recent_half_life_turnovers", 0.0),
        ("steady_half_life_turnovers", 0.5),
        ("recent_weight", 1.1),
        ("ghosts_per_resident", -1.0),
        ("first_count", 0.0),
        ("score_by", "bytes"),
        ("score_by", "seconds"),
    ],
)
def test_a_wrong_value_of_the_forecast_is_named(field: str, value: object) -> None:
    forecasts = load_choice("cache", "predictive")["policy"]["forecasts"]
    changed = forecasts | {"recent": forecasts["recent"] | {field: value}}
    with pytest.raises(ConfigError, match=rf"forecasts.*{field}.*; expected"):
        policy("predictive", forecasts=changed)


def test_the_five_named_strategies_hit_differently_where_popularity_shifts() -> None:
    """With times to live of three lengths, as different types have them."""
    keys = np.concatenate([zipf(400, 2500, 0.9, 1) + shift for shift in (0, 150, 300)])
    lives_s = np.asarray([500.0, 2000.0, 8000.0])[keys % 3]
    found = {}
    for name in ("lru", "lfu", "ttl", "adaptive", "predictive"):
        tier = SimulatedTier(policy(name), 40)
        found[name] = sum(
            tier.access(b"%d" % key, 1, 1.0, float(now), now + live_s)
            for now, (key, live_s) in enumerate(zip(keys.tolist(), lives_s.tolist(), strict=True))
        )
    assert len(set(found.values())) == 5, found


def adaptive(**changes: Any) -> Adaptive:
    settings = {
        "experts": {"lru": Lru(), "s3_fifo": S3Fifo(0.1, 2)},
        "score_by": "hits",
        "sample_entries": 64,
        "half_life_turnovers": 8.0,
        "standard_errors": 2.0,
        "margin": 0.0,
    }
    return Adaptive(**(settings | changes))  # type: ignore[arg-type]


def test_a_single_expert_decides_as_it_would_alone() -> None:
    keys = zipf(500, 4000, 0.8, 2).tolist()
    for expert in (Lru(), Arc(), Sieve(), S3Fifo(0.1, 2)):
        assert hits(adaptive(experts={"alone": expert}), keys, 50)[0] == hits(expert, keys, 50)[0]


def test_the_better_expert_takes_over_and_the_choice_is_recorded() -> None:
    """A loop larger than the cache defeats LRU; a sliding front defeats S3-FIFO."""
    loop = [place % 120 for place in range(8000)]
    front = [1000 + place // 3 - place % 3 * 20 for place in range(8000)]
    _, tier = hits(adaptive(), [*loop, *front], 100)
    chosen = tier.policy.chosen
    assert [choice.expert for choice in chosen][:2] == ["lru", "s3_fifo"]
    assert 0 < chosen[1].num_accesses < 2000
    assert chosen[1].now == chosen[1].num_accesses - 1  # one access a second, from 0 on
    assert [choice.expert for choice in chosen if choice.num_accesses > 8000][-1:] == ["lru"]
    assert ratio(adaptive(), loop, 100) > ratio(Lru(), loop, 100) + 0.5


def test_a_change_keeps_every_resident() -> None:
    """Until something is inserted that needs room, all that was stored can be read."""
    tier = SimulatedTier(adaptive(), 100)
    for place in range(6000):
        held = {key for key in range(120) if b"%d" % key in tier}
        before = len(tier.policy.chosen)
        hit = tier.access(b"%d" % (place % 120), 1, 1.0, float(place), math.inf)
        if hit or len(tier.policy.chosen) > before:
            after = {key for key in range(120) if b"%d" % key in tier}
            assert len(held - after) <= (0 if hit else 1)
    assert len(tier.policy.chosen) > 1


def test_changes_without_end_lose_nobody() -> None:
    """Every hint leads to a change here, amid removals, expiries and entries of all sizes; the tier
    fails at once when a victim or a reader is not where the policy has it."""
    experts = {name: policy(name) for name in ("lru", "arc", "s3_fifo", "w_tinylfu", "gdsf")}
    eager = adaptive(experts=experts, sample_entries=16, standard_errors=0.0)
    tier = SimulatedTier(eager, 2000)
    rng = np.random.default_rng(12)
    keys, sizes, lives = zipf(300, 8000, 0.7, 10), rng.integers(1, 90, 8000), rng.random(8000)
    for now, (key, size) in enumerate(zip(keys.tolist(), sizes.tolist(), strict=True)):
        name = b"%d" % key
        if lives[now] < 0.05 and name in tier:
            tier.remove(name)
        expires_s = now + (math.inf if lives[now] < 0.5 else 400 * lives[now])
        tier.access(name, size, float(size), float(now), expires_s)
        assert tier.num_bytes <= 2000
    assert len(tier.policy.chosen) > 20
    while len(tier):
        tier.remove(tier.policy.victim(9000.0))
    assert tier.num_bytes == 0


STREAMS = {
    "zipf": zipf(3000, 24_000, 0.9, 3),
    "shift": np.concatenate(
        [np.random.default_rng(n).permutation(3000)[zipf(3000, 8000, 0.9, n)] for n in range(3)]
    ),
    "loop_mix": np.where(
        np.arange(24_000) % 2, zipf(3000, 24_000, 0.9, 4), 3000 + np.arange(24_000) % 600
    ),
    "front": 6000 + np.arange(24_000) // 4 - zipf(600, 24_000, 1.0, 5),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_adaptive_is_close_to_the_best_of_its_experts(stream: str) -> None:
    keys = STREAMS[stream].tolist()
    best = max(ratio(policy(name), keys, 300) for name in ("lru", "arc", "s3_fifo", "w_tinylfu"))
    assert ratio(policy("adaptive"), keys, 300) > best - 0.01


def test_five_capacities_after_all_popularity_changed_adaptive_is_back() -> None:
    """Within 2 points of the best fixed policy in the sixth capacity of requests after it."""
    capacity, num_before, found = 400, 10_000, {}
    fixed = ("lru", "lfu", "arc", "s3_fifo", "sieve", "w_tinylfu")
    for name in (*fixed, "adaptive"):
        sixth = []
        for seed in (6, 7):
            rng = np.random.default_rng(seed)
            before = zipf(4000, num_before, 1.0, seed)
            after = rng.permutation(4000)[zipf(4000, 6 * capacity, 1.0, seed + 10)]
            all_hits, _ = hits(policy(name), np.concatenate([before, after]).tolist(), capacity)
            sixth += all_hits[-capacity:]
        found[name] = float(np.mean(sixth))
    assert found["adaptive"] > max(found.values()) - 0.02, found


def test_scored_by_seconds_the_expert_that_saves_them_is_chosen() -> None:
    """Half of the keys cost a hundred times as much as the others."""
    keys = zipf(2000, 12_000, 0.7, 9).tolist()
    experts = {"lru": Lru(), "gdsf": Gdsf()}
    by_seconds = SimulatedTier(adaptive(experts=experts, score_by="seconds"), 200)
    for now, key in enumerate(keys):
        cost_s = 1.0 if key % 2 else 0.01
        by_seconds.access(b"%d" % key, 1, cost_s, float(now), math.inf)
    assert by_seconds.policy.chosen[-1].expert == "gdsf"


def test_gdsf_keeps_what_saves_the_most_seconds_per_byte() -> None:
    tier = SimulatedTier(Gdsf(), 100)
    tier.access(b"dear", 50, 5.0, 0.0, math.inf)
    tier.access(b"cheap", 10, 0.1, 1.0, math.inf)
    tier.access(b"large", 40, 0.5, 2.0, math.inf)
    tier.access(b"new", 10, 1.0, 3.0, math.inf)
    assert [key in tier for key in (b"dear", b"cheap", b"large", b"new")] == [
        True, False, True, True,
    ]  # fmt: skip


def test_ttl_evicts_what_expires_soonest_and_fifo_what_came_first() -> None:
    def left(prototype: Any) -> set[bytes]:
        tier = SimulatedTier(prototype, 2)
        for key, expires_s in ((b"a", 90.0), (b"b", 20.0), (b"c", 50.0)):
            tier.access(key, 1, 1.0, 0.0, expires_s)
        return {key for key in (b"a", b"b", b"c") if key in tier}

    assert left(Ttl()) == {b"a", b"c"}
    assert left(policy("fifo")) == {b"b", b"c"}
