"""RAM is charged for what it holds: by tracemalloc, a full tier takes no more than it says, and not
much less, under every policy."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.library.strategy_choice import CacheStrategy, build_policy
from capibench.cache.policies.lru import Lru
from capibench.cache.policy import EvictionPolicy, PolicyMemory, memory_of
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1, OVERHEAD_BYTES
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.l2_record import unpack_record
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.rocks import RocksStore

RESULT, VECTOR = CacheType.QUERY_RESULT, CacheType.EMBEDDING


def requests(load: str, num_entries: int) -> list[int]:
    """`inserted`: each key once, until the tier is full; `churned`: hits, evictions, returns."""
    if load == "inserted":
        return list(range(num_entries))
    rng = np.random.default_rng(0)
    return (rng.zipf(1.1, 4 * num_entries) % (20 * num_entries)).tolist()


def capacity_for(policy: EvictionPolicy, num_entries: int) -> int:
    """Of a tier that holds so many entries of 100 bytes."""
    memory, record = memory_of(policy), encode(b"v" * 100)
    each = 16 + len(record) + OVERHEAD_BYTES + memory.per_entry
    return num_entries * each + memory.per_sampled * min(num_entries, memory.most_sampled)


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
            gc.collect()  # empties the interpreter's own lists of free objects
            shares.append(tracemalloc.get_traced_memory()[0] / tier.num_bytes)
    return max(shares, default=0.0)


# Just before and just after tables grow, when they take least and most for each entry.
SMALL = [("inserted", 2000), *(("churned", entries) for entries in (176, 300, 684, 1366, 2780))]
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
    most_taken(L1(policy, capacity_for(policy, 50)), asked)  # what a first use leaves for good
    gc.collect()
    gc.freeze()  # so that collecting in `most_taken` is quick
    tracemalloc.start()
    try:
        tier = L1(policy, capacity_for(policy, num_entries))
        taken = most_taken(tier, asked)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert tier.num_bytes <= tier.capacity_bytes
    assert taken <= 1
    if load == "churned":
        assert taken > 1 / 1.5


@pytest.mark.parametrize("num_entries", [1, 2, 3, 5, 40])
def test_the_first_entries_pay_for_a_policys_sample(num_entries: int) -> None:
    """So a larger tier never holds fewer entries, and each holds as many as it has room for."""

    @dataclass
    class Sampling(Lru):
        memory = PolicyMemory(per_entry=10, per_sampled=5000, most_sampled=3)

    tier = L1(Sampling(), capacity_for(Sampling(), num_entries))
    for number in range(100):
        tier.put(cache_key(RESULT, str(number)), Entry(RESULT, 1.0, 9.0), encode(b"v" * 100), 0.0)
        assert len(tier) == min(number + 1, num_entries)
    assert tier.num_bytes == tier.capacity_bytes
    tier.clear()
    assert tier.num_bytes == 0


def test_each_type_with_a_quota_pays_for_a_policy_of_its_own(tmp_path: Path) -> None:
    policy, _ = build_policy(CacheStrategy.ADAPTIVE, {})
    record = encode(b"v")
    sizes = {}
    for quotas in (None, {VECTOR: 0.5}):
        tier = L1(policy, 256 << 20, quotas)
        for kind in (RESULT, VECTOR):
            for number in range(1500):
                tier.put(cache_key(kind, str(number)), Entry(kind, 0.1, 1.0), record, 0.0)
        sizes[quotas is None] = tier.num_bytes
    memory = memory_of(policy)
    assert sizes[False] - sizes[True] == (3000 - memory.most_sampled) * memory.per_sampled > 0
    disk = L2(policy, 1 << 20, tmp_path)
    disk.put(b"k" * 16, Entry(RESULT, 0.1, 1.0), record, 0.0)
    assert disk.num_bytes < memory.per_entry, "its policy takes no disk"
    disk.close()


@pytest.mark.parametrize("character", ["a", "é", "ж", "語", "😀", "\ud800"])
@pytest.mark.parametrize("label", ["name", "tag"])
def test_labels_in_any_script_are_charged_in_ram_and_on_disk(
    character: str, label: str, tmp_path: Path
) -> None:
    record = encode(b"v")

    def entry(number: int) -> Entry:
        text = f"{number}" + 4000 * character
        return Entry(RESULT, 0.1, 9.0, 9.0, *((text,) if label == "name" else ("", (text,))))

    gc.collect()
    tracemalloc.start()
    try:
        tier = L1(Lru(), 1 << 20)
        for number in range(300):
            tier.put(cache_key(RESULT, str(number)), entry(number), record, 0.0)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= tier.capacity_bytes
    disk = L2(Lru(), 1 << 20, tmp_path)
    disk.put(b"k" * 16, entry(0), record, 0.0)
    charged = disk.num_bytes
    disk.close()
    store = RocksStore(tmp_path)
    stored = store.read(b"k" * 16)
    store.close()
    assert stored is not None
    assert len(stored) <= charged
    assert unpack_record(b"k" * 16, stored).entry == entry(0)
