"""RAM is charged for what it holds: by tracemalloc, a full tier takes no more than it says, and not
much less, under every policy."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.library.strategy_choice import CacheStrategy, build_policy
from capibench.cache.policy import EvictionPolicy, PolicyMemory
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry

RESULT, VECTOR = CacheType.QUERY_RESULT, CacheType.EMBEDDING


def requests(load: str, num_entries: int) -> list[int]:
    """`inserted`: each key once, until the tier is full; `churned`: hits, evictions, returns."""
    if load == "inserted":
        return list(range(num_entries))
    rng = np.random.default_rng(0)
    return (rng.zipf(1.1, 4 * num_entries) % (20 * num_entries)).tolist()


def capacity_for(policy: EvictionPolicy, num_entries: int) -> int:
    """Of a tier that holds so many entries of 100 bytes; a large one sets aside for samples."""
    probe = L1(policy, (1 << 20) if num_entries <= 2000 else (1 << 40))
    set_aside = probe.num_bytes
    probe.put(b"k" * 16, Entry(RESULT, 0.1, 3600.0), encode(b"v" * 100), 0.0)
    return set_aside + num_entries * (probe.num_bytes - set_aside)


def most_taken(tier: L1, asked: list[int]) -> float:
    """Bytes that it holds as a share of what it says, at most once it is nearly full."""
    shares, now = [], 0.0
    for number, name in enumerate(asked, 1):
        now += 0.001
        key = cache_key(RESULT, str(name))
        if tier.get(RESULT, key, now) is None:
            entry = Entry(RESULT, 0.1, now + 3600, now + 3600)
            tier.put(key, entry, encode(b"v" * 100), now)
        if number % (len(asked) // 16) == 0 and tier.num_bytes > 0.9 * tier.capacity_bytes:
            shares.append(tracemalloc.get_traced_memory()[0] / tier.num_bytes)
    return max(shares)


SMALL = [(load, entries) for load in ("inserted", "churned") for entries in (500, 2000)]
LARGE = [("lru", "churned", 22_000), ("adaptive", "churned", 22_000)]  # others pass it as well


@pytest.mark.parametrize(
    ("strategy", "load", "num_entries"),
    [(strategy.value, *small) for strategy in CacheStrategy for small in SMALL] + LARGE,
)
def test_a_full_tier_takes_no_more_than_its_capacity(
    strategy: str, load: str, num_entries: int
) -> None:
    policy, _ = build_policy(CacheStrategy(strategy), {})
    asked = requests(load, num_entries)
    gc.collect()
    tracemalloc.start()
    try:
        tier = L1(policy, capacity_for(policy, num_entries))
        taken = most_taken(tier, asked)
    finally:
        tracemalloc.stop()
    assert tier.num_bytes <= tier.capacity_bytes
    assert taken <= 1
    if load == "churned":
        assert taken > 1 / 1.5


def test_a_policys_sample_is_set_aside_where_it_is_little_and_else_charged_by_entry() -> None:
    memory = PolicyMemory(per_entry=10, per_sampled=100, most_sampled=50)
    assert memory.charge(20_000) == (5000, 10)
    assert memory.charge(19_999) == (0, 110)
    assert PolicyMemory(7).charge(1) == (0, 7)


def test_each_type_with_a_quota_pays_for_a_policy_of_its_own(tmp_path: Path) -> None:
    policy, _ = build_policy(CacheStrategy.ADAPTIVE, {})
    size = 256 << 20
    set_aside = L1(policy, size).num_bytes
    assert 0 < set_aside < size / 4
    halves = L1(policy, size, {VECTOR: 0.5})
    assert halves.num_bytes == 2 * set_aside
    assert halves.capacity_of(VECTOR) == halves.capacity_of(RESULT) == size // 2 - set_aside
    small = L1(policy, size, {VECTOR: 0.01})
    assert small.num_bytes == set_aside, "in the small part entries are charged for it"
    entry = Entry(VECTOR, 0.1, 1.0)
    small.put(b"k" * 16, entry, encode(b"v"), 0.0)
    charge = small.num_bytes - set_aside
    halves.put(b"k" * 16, entry, encode(b"v"), 0.0)
    assert charge > halves.num_bytes - 2 * set_aside
    small.clear()
    assert small.num_bytes == set_aside
    disk = L2(policy, size, tmp_path)
    assert (disk.num_bytes, disk.capacity_of(VECTOR)) == (0, size), "its policy takes no disk"
    disk.close()
