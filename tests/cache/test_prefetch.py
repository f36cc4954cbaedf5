"""What lies on the SSD comes back into RAM before it is asked for: where that pays, and only there;
never a removed, replaced or expired value; never in the way of a look-up."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.policies.w_tinylfu import WTinyLfu
from capibench.cache.policy import EvictionPolicy
from capibench.cache.prefetching.prefetch import Followers
from capibench.cache.prefetching.prefetch_switch import SwitchRule
from capibench.cache.prefetching.successors import Successors
from capibench.cache.tiers import l1 as l1_module
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.tier_stats import prefetch_facts
from capibench.cache.tiers.tiered import TieredCache

RESULT, VECTOR = CacheType.QUERY_RESULT, CacheType.EMBEDDING
VALUE = b"v" * 100
SLOT = 16 + len(encode(VALUE)) + l1_module.OVERHEAD_BYTES
RULE = SwitchRule(0.2, 0.95, trial_prefetches=24, block_prefetches=48, rest_accesses=500)


def key(number: int) -> bytes:
    return cache_key(RESULT, str(number))


def followers(window: int = 2, rule: SwitchRule = RULE, most_per_turn: int = 4) -> Followers:
    return Followers(window, 4, 2, 10_000, most_per_turn, rule)


def tiers(
    folder: Path,
    slots: int,
    prefetch: Followers | None,
    policy: EvictionPolicy | None = None,
    ttl_s: float = 1e9,
) -> TieredCache:
    policy = policy or Lru()
    l1, l2 = L1(policy, slots * SLOT), L2(Lru(), 1 << 22, folder)
    return TieredCache(l1, l2, {RESULT: ttl_s, VECTOR: ttl_s}, prefetch=prefetch)


def ask_all(cache: TieredCache, numbers: Iterable[int], start: int = 0) -> list[str]:
    """Where each was found; who misses stores; after each the cache is tended."""
    found: list[str] = []
    for step, number in enumerate(numbers, start):
        now = float(step)
        found.append(cache.lookup(RESULT, key(number), now).tier)
        if found[-1] == "miss":
            cache.put(RESULT, key(number), VALUE, 1.0, now)
        cache.tend(now)
    return found


def mixed(seed: int, num: int = 1000) -> list[int]:
    """Sequences of ten keys, and now and then some other key."""
    rng = np.random.default_rng(seed)
    numbers: list[int] = []
    while len(numbers) < num:
        start = 10 * int(rng.integers(12))
        for number in range(start, start + 10):
            numbers.extend([number] if rng.random() < 0.8 else [int(rng.integers(120)), number])
    return numbers[:num]


def test_a_loop_that_does_not_fit_is_found_in_ram_from_the_third_lap_on(tmp_path: Path) -> None:
    loop = list(range(40))
    without = tiers(tmp_path / "without", 8, None)
    assert ask_all(without, 5 * loop) == ["miss"] * 40 + ["l2"] * 160
    assert without.stats()["prefetch"] is None
    cache = tiers(tmp_path / "with", 8, followers())
    found = ask_all(cache, 5 * loop)
    assert found[:41] == ["miss"] * 40 + ["l2"]
    assert found[41:] == ["l1"] * 159, "from the second key of the second lap on"
    stats = cache.stats()
    prefetch = stats["prefetch"]
    assert (prefetch["mode"], prefetch["used"], prefetch["unused"]) == ("on", 159, 0)
    assert (prefetch["harmed"], prefetch["precision"]) == (0, 1.0)
    assert prefetch["prefetched"] == 159 + prefetch["open"]
    assert [switched["mode"] for switched in prefetch["switched"]] == ["trial", "on"]
    assert prefetch["tending_s"] > prefetch["reading_s"] > 0
    assert stats["overall"]["l1_hits"] == 159
    assert prefetch_facts(stats)["cache.prefetch.used"] == 159
    assert prefetch_facts({}) == prefetch_facts(without.stats()) == {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slots", [7, 23])
def test_used_less_harmed_is_exactly_what_prefetching_gained(
    tmp_path: Path, seed: int, slots: int
) -> None:
    numbers = mixed(seed)
    rule = SwitchRule(0.01, 0.6, 1, 1000, 1)
    cache = tiers(tmp_path / "with", slots, followers(rule=rule))
    gained = ask_all(cache, numbers).count("l1")
    gained -= ask_all(tiers(tmp_path / "without", slots, None), numbers).count("l1")
    prefetch = cache.stats()["prefetch"]
    assert prefetch["used"] > prefetch["harmed"] > 0
    assert prefetch["used"] - prefetch["harmed"] == gained
    total = prefetch["used"] + prefetch["unused"] + prefetch["open"]
    assert prefetch["prefetched"] == total


def test_it_switches_itself_off_where_nothing_follows_and_on_when_something_does(
    tmp_path: Path,
) -> None:
    chance = np.random.default_rng(5).integers(40, size=2000).tolist()
    cache = tiers(tmp_path, 8, followers(window=1))
    ask_all(cache, chance)
    prefetch = cache.stats()["prefetch"]
    assert prefetch["mode"] != "on"
    assert "on" not in [switched["mode"] for switched in prefetch["switched"]]
    num_trials = [switched["mode"] for switched in prefetch["switched"]].count("trial")
    assert 2 <= num_trials <= 5, "it tries again, after a rest of 500 accesses"
    assert prefetch["prefetched"] <= num_trials * RULE.trial_prefetches
    found = ask_all(cache, 30 * list(range(40)), 2000)
    assert cache.stats()["prefetch"]["mode"] == "on"
    assert found[-40:] == ["l1"] * 40
    ask_all(cache, chance[:1000], 3200)
    switched = cache.stats()["prefetch"]["switched"]
    assert [entry["mode"] for entry in switched][-3:].count("on") == 0, "off again"
    assert [entry["at_access"] for entry in switched] == sorted(
        entry["at_access"] for entry in switched
    )


def test_no_look_up_ever_prefetches(tmp_path: Path) -> None:
    cache = tiers(tmp_path, 8, followers())
    for step, number in enumerate(5 * list(range(40))):
        if cache.lookup(RESULT, key(number), float(step)).tier == "miss":
            cache.put(RESULT, key(number), VALUE, 1.0, float(step))
    assert cache.stats()["prefetch"]["prefetched"] == 0
    assert cache.tend(200.0) == 4, "no more at a time than most_per_turn"


def learned(cache: TieredCache) -> None:
    """0 is followed by 1, and 1 lies on the SSD alone; nobody has tended since 0 was asked for."""
    for number in (0, 1, 2, 3):
        cache.put(RESULT, key(number), VALUE, 1.0, 0.0, name=f"n{number}", tags=("doc",))
    for number in (0, 1, 2, 3, 2, 3, 0):
        cache.lookup(RESULT, key(number), 1.0)


@pytest.mark.parametrize("how", ["key", "glob", "tag", "all", "life", "new", "expired"])
def test_what_was_removed_meanwhile_does_not_come_back(tmp_path: Path, how: str) -> None:
    cache = tiers(tmp_path, 2, followers(1, most_per_turn=1), ttl_s=50.0)
    learned(cache)
    now = 2.0
    if how == "key":
        assert cache.remove(key(1))
    elif how == "glob":
        assert cache.remove_matching("n1") == 1
    elif how == "tag":
        assert cache.remove_tagged("doc") == 4
    elif how == "all":
        assert cache.clear() == 4
    elif how == "life":
        cache.put(RESULT, key(1), VALUE, 1.0, now, ttl_s=0.0)
    elif how == "new":
        cache.put(RESULT, key(1), b"new", 1.0, now)
    else:
        now = 50.0
    cache.tend(now)
    found = cache.lookup(RESULT, key(1), now)
    assert found.value == (b"new" if how == "new" else None)
    assert cache.stats()["prefetch"]["used"] == 0


def test_a_prefetched_entry_lives_no_longer_and_is_removed_like_any(tmp_path: Path) -> None:
    cache = tiers(tmp_path, 2, followers(1, most_per_turn=1), ttl_s=50.0)
    learned(cache)
    assert cache.tend(2.0) == 1
    assert cache.lookup(RESULT, key(1), 49.0).tier == "l1"
    assert cache.lookup(RESULT, key(1), 50.0).tier == "miss"
    other = tiers(tmp_path / "other", 2, followers(1, most_per_turn=1), ttl_s=50.0)
    learned(other)
    assert other.tend(2.0) == 1
    assert other.remove_tagged("doc") == 4
    assert other.lookup(RESULT, key(1), 3.0).tier == "miss"
    prefetch = other.stats()["prefetch"]
    assert (prefetch["used"], prefetch["unused"], prefetch["open"]) == (0, 1, 0)


def test_what_expired_in_ram_settles_as_unused(tmp_path: Path) -> None:
    cache = tiers(tmp_path, 2, followers(1, most_per_turn=1), ttl_s=50.0)
    learned(cache)
    assert cache.tend(2.0) == 1
    assert cache.expire(50.0) > 0
    cache.tend(51.0)
    assert cache.stats()["prefetch"]["unused"] == 1


def test_a_policy_may_refuse_and_a_failing_disk_costs_nothing_but_hits(tmp_path: Path) -> None:
    refusing = tiers(tmp_path / "refusing", 8, followers(), WTinyLfu(0.2, 0.8, 10))
    ask_all(refusing, mixed(1, 800))
    prefetch = refusing.stats()["prefetch"]
    total = prefetch["used"] + prefetch["unused"] + prefetch["open"]
    assert prefetch["prefetched"] == total
    cache = tiers(tmp_path / "failing", 2, followers(1, most_per_turn=1))
    learned(cache)
    shutil.rmtree(tmp_path / "failing")
    (tmp_path / "failing").touch()
    cache.tend(2.0)
    ask_all(cache, mixed(2, 100), 3)
    cache.close()


def test_a_closed_cache_prefetches_nothing(tmp_path: Path) -> None:
    cache = tiers(tmp_path, 2, followers(1, most_per_turn=1))
    learned(cache)
    cache.close()
    assert cache.tend(2.0) == 0
    assert cache.stats()["prefetch"]["prefetched"] == 0
    assert cache.stats()["l2_errors"] == 0


def test_no_stale_value_while_threads_change_read_and_tend(tmp_path: Path) -> None:
    """Three threads change what 30 values rest on, and remove and store them; three read; one
    prefetches all the time. Nobody reads what was removed before he asked."""
    cache = tiers(tmp_path, 6, followers(rule=SwitchRule(0.01, 0.6, 1, 1000, 1)))
    versions, wrong, done = [0] * 30, list[int](), threading.Event()
    for number in range(30):
        cache.put(RESULT, key(number), [0, "x" * 90], 1.0, 0.0, tags=(f"d{number}",))

    def change(part: int) -> None:
        rng = np.random.default_rng(part)
        for _ in range(40):
            number = 3 * int(rng.integers(10)) + part
            versions[number] += 1
            if rng.random() < 0.5:
                cache.remove_tagged(f"d{number}")
            else:
                cache.remove(key(number))
            value = [versions[number], "x" * 90]
            cache.put(RESULT, key(number), value, 1.0, 0.0, tags=(f"d{number}",))

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            start = int(rng.integers(20))
            for number in range(start, start + 8):
                at_least = versions[number] - 1  # its change may be under way
                found = cache.lookup(RESULT, key(number), 0.0)
                if found.is_hit and found.value[0] < at_least:
                    wrong.append(number)

    def tend() -> None:
        while not done.is_set():
            cache.tend(0.0)

    tender = threading.Thread(target=tend)
    workers = [threading.Thread(target=change, args=(part,)) for part in range(3)]
    workers += [threading.Thread(target=read, args=(seed,)) for seed in range(10, 13)]
    for thread in (tender, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    tender.join()
    assert wrong == []
    assert cache.stats()["prefetch"]["prefetched"] > 0
    for number in range(30):
        assert cache.lookup(RESULT, key(number), 0.0).value[0] == versions[number]
    cache.close()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([RESULT, VECTOR]), st.integers(0, 5)), max_size=40),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_followers_are_those_of_a_plain_reading_of_the_history(
    asked: list[tuple[CacheType, int]], window: int, kept: int, least: int
) -> None:
    forecast = Successors(window, kept, least, keys_kept=100)
    history: list[tuple[CacheType, bytes]] = []
    for kind, number in asked:
        name = cache_key(kind, str(number))
        history.append((kind, name))
        forecast.accessed(kind, name)
        keys = [key for of, key in history if of is kind]
        before = [place for place, key in enumerate(keys[:-1]) if key == name][-kept:]
        after = [set(keys[place + 1 : place + 1 + window]) - {name} for place in before]
        counts = {key: sum(key in followers for followers in after) for key in set().union(*after)}
        needed = min(least, len(before))
        expected = forecast.expected(name)
        assert len(expected) == len(set(expected))
        assert set(expected) == {key for key, count in counts.items() if count >= needed}


def test_only_the_latest_keys_are_remembered() -> None:
    forecast = Successors(1, 4, 1, keys_kept=3)
    for number in (0, 1, 2, 3, 4, 0):
        forecast.accessed(RESULT, key(number))
    assert forecast.expected(key(0)) == [], "0 was forgotten for 4"
    for number in (4, 0):
        forecast.accessed(RESULT, key(number))
    assert forecast.expected(key(0)) == [key(4)]


@pytest.mark.parametrize(
    ("good", "pays"), [(128, True), (34, True), (33, False), (0, False), (-3, False)]
)
def test_wilsons_lower_end_decides(good: int, pays: bool) -> None:
    """With z = 1.645 the lower end for 34 of 128 is 0.2067, for 33 0.1997."""
    assert SwitchRule(0.2, 0.95, 128, 512, 10).pays(good, 128) is pays
