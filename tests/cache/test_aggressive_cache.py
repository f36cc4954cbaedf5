"""The cache as a program uses it: what it returns, refuses, forgets, and survives."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_files import choices

import capibench.cache as public
from capibench.cache import AggressiveCache, CacheStrategy, CacheType
from capibench.cache.library.aggressive_cache import DEFAULT_TTL_SECONDS
from capibench.cache.tiers.rocks import FORMAT_FOLDER
from capibench.errors import ConfigError

RESULT, VECTOR, OUTPUT = CacheType.QUERY_RESULT, CacheType.EMBEDDING, CacheType.MODEL_OUTPUT


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., AggressiveCache]]:
    made = []

    def build(**arguments: Any) -> AggressiveCache:
        settings = {
            "l1_size_mb": 1,
            "l2_size_mb": None,
            "l2_cache_dir": tmp_path / "l2",
            "strategy": CacheStrategy.LRU,
            "clock": clock,
        }
        cache = AggressiveCache(**{**settings, **arguments})
        made.append(cache)
        return cache

    yield build
    for cache in made:
        cache.shutdown()


def test_public_names() -> None:
    assert sorted(public.__all__) == public.__all__
    assert set(public.__all__) <= set(dir(public))
    assert all(getattr(public, name).__name__ == name for name in public.__all__)
    with pytest.raises(AttributeError):
        _ = public.Cache
    heavy = "import sys, capibench.cache; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", heavy], check=True)


def test_every_policy_of_the_configuration_is_a_strategy_and_works(make: Any) -> None:
    without = {"none", "belady"}  # no cache, and a bound that knows the future
    assert {strategy.value for strategy in CacheStrategy} == set(choices("cache")) - without
    for strategy in CacheStrategy:
        cache = make(strategy=strategy, l1_size_mb=0.01)
        for number in range(60):
            cache.set(f"k{number % 20}", [number])
            assert cache.get(f"k{number % 20}") in ([number], None)
        assert cache.get_cache_stats()["strategy"] == strategy.value
        assert cache.get_cache_stats()["l1_cache"]["utilisation"] <= 1


def test_a_cached_none_is_not_the_default(make: Any) -> None:
    cache = make()
    assert cache.get("k", default="nothing") == "nothing"
    cache.set("k", None)
    assert cache.get("k", default="nothing") is None
    assert cache.get_or_compute("k", lambda: "computed") is None


def test_types_are_apart_with_their_own_times_to_live(make: Any, clock: Clock) -> None:
    assert [DEFAULT_TTL_SECONDS[kind] for kind in CacheType] == [3600, 86400, 1800, 7200, 3600]
    cache = make()
    for kind in CacheType:
        cache.set("k", kind.value, kind)
    for kind in CacheType:
        assert cache.get("k", kind) == cache.get("k", kind.value) == kind.value
    for kind in sorted(CacheType, key=lambda kind: DEFAULT_TTL_SECONDS[kind]):
        clock.now_s = np.nextafter(DEFAULT_TTL_SECONDS[kind], 0)
        assert cache.get("k", kind) == kind.value
        clock.now_s = DEFAULT_TTL_SECONDS[kind]
        assert cache.get("k", kind) is None


def test_ttl_zero_keeps_nothing_and_infinity_everything(make: Any, clock: Clock) -> None:
    cache = make(ttl_seconds={"metadata": 0})
    cache.set("k", 1)
    cache.set("k", 2, ttl_seconds=0)
    assert cache.get("k") is None
    cache.set("k", 3, ttl_seconds=float("inf"))
    cache.set("m", 4, CacheType.METADATA)
    assert cache.get("m", CacheType.METADATA) is None
    clock.now_s = 1e15
    assert cache.get("k") == 3


def test_nobody_can_change_what_is_cached(make: Any) -> None:
    cache = make()
    given = {"scores": np.zeros(3), "ids": ["a"]}
    cache.set("k", given)
    given["ids"].append("b")
    taken = cache.get("k")
    taken["scores"][:] = 1
    taken["ids"].clear()
    again = cache.get("k")
    assert again["ids"] == ["a"]
    np.testing.assert_array_equal(again["scores"], np.zeros(3))
    computed: list[int] = []
    first = cache.get_or_compute("c", lambda: computed)
    first.append(1)
    assert cache.get("c") == []


def test_keys_of_any_plain_type_and_none_of_them_meets_another(make: Any) -> None:
    cache = make()
    array = np.arange(4, dtype=np.float32)
    keys = [
        "1", 1, 1.0, True, None, b"1", (1,), [1], {"a": 1}, array, array.reshape(2, 2),
        array.astype(np.float64), ("1", array), "None", "",
    ]  # fmt: skip
    for number, key in enumerate(keys):
        cache.set(key, number)
    assert [cache.get(key) for key in keys] == list(range(len(keys)))
    assert cache.get(np.repeat(array, 2)[::2]) == 9
    cache.set({"a": 1, "b": 2}, "same")
    assert cache.get({"b": 2, "a": 1}) == "same"
    assert cache.get(np.asfortranarray(array.reshape(2, 2))) == 10
    assert cache.get(np.array(0, dtype=np.float32)) is None
    cache.set(np.array([0], dtype=np.float32), "one dimension")
    assert cache.get(np.array(0, dtype=np.float32)) is None, "has none"
    cache.set(0.0, "zero")
    assert (cache.get(0.0), cache.get(-0.0), cache.get((-0.0,))) == ("zero", None, None)
    inside: list[object] = []
    inside.append(inside)
    for wrong, message in (
        ({1, 2}, "of type set"),
        (object(), "of type object"),
        (np.array([object()]), "of dtype object"),
        (np.ma.array([1, 2], mask=[0, 1]), "MaskedArray"),
        (np.array([1, 2]).view(np.recarray), "recarray"),
        (float("nan"), "nan"),
        ((1, [float("nan")]), "nan"),
        (np.array([1.0, np.nan]), "nan"),
        ({"a": np.array(["NaT"], "M8[s]")}, "nan"),
        (10**5000, "too many digits"),
        (inside, "in itself"),
        ({1: 1, "a": 2}, "dict with a key that is not a str"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^key: .*{message}"):
            cache.get(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l1_size_mb": 0}, "l1_size_mb: got 0; expected a size of at least one byte"),
        ({"l1_size_mb": -1}, "l1_size_mb: got -1"),
        ({"l1_size_mb": "8"}, "l1_size_mb: got '8'"),
        ({"l2_size_mb": 0}, "l2_size_mb: got 0"),
        ({"l2_size_mb": float("nan")}, "l2_size_mb: got nan"),
        ({"strategy": "mru"}, "strategy: got 'mru'; expected one of lru"),
        ({"ttl_seconds": {"answer": 1}}, "ttl_seconds: got 'answer'; expected one of query_result"),
        ({"ttl_seconds": {RESULT: -1}}, "ttl_seconds.query_result: got -1; expected at least 0"),
        ({"quotas": {RESULT: 0.7, VECTOR: 0.7}}, "quotas: got 1.4 in all; expected at most 1"),
        ({"quotas": {RESULT: 0}}, "quotas.query_result: got 0; expected above 0"),
        ({"ttl_jitter": 1}, "ttl_jitter: got 1; expected 0 to below 1"),
        ({"stale_while_revalidate_seconds": -1}, "stale_while_revalidate_seconds: got -1"),
        ({"epoch": 3}, "epoch: got 3; expected a str"),
        ({"custom_config": {"window": 1}}, "custom_config.window: got 1; expected one of: none"),
        *(
            ({name: wrong}, f"{name}: got {wrong!r}"[:60])
            for name in (
                "l1_size_mb",
                "l2_size_mb",
                "stale_while_revalidate_seconds",
                "ttl_jitter",
                "seed",
                "ttl_seconds",
                "quotas",
                "custom_config",
                "clock",
                "compress",
                "float16_embeddings",
                "epoch",
                "strategy",
                "l2_cache_dir",
            )
            for wrong in (-1, float("nan"), [1], b"x")
        ),
        *(
            ({"ttl_seconds": {RESULT: wrong}}, f"ttl_seconds.query_result: got {wrong!r}")
            for wrong in ("a", None, True, 1e300, float("nan"))
        ),
        *(
            ({"quotas": {RESULT: wrong}}, f"quotas.query_result: got {wrong!r}")
            for wrong in ("a", None, True)
        ),
        ({"ttl_seconds": {RESULT: 10**400}}, "ttl_seconds.query_result: got 1000"),
        ({"ttl_seconds": 0}, "ttl_seconds: got 0; expected a mapping"),
        ({"l1_size_mb": 1e308}, "l1_size_mb: got 1e+308; expected a size"),
        ({"l1_size_mb": 10**400}, "l1_size_mb: got 1000"),
        ({"l1_size_mb": 10**5000}, "l1_size_mb: got a int"),
        ({"seed": True}, "seed: got True; expected an int of at least 0"),
        ({"compress": "no"}, "compress: got 'no'; expected True or False"),
        ({"clock": lambda: "noon"}, "clock: got one that says 'noon'; expected seconds"),
        ({"l2_cache_dir": __file__}, "l2_cache_dir: got '"),
        ({"l2_cache_dir": ""}, "l2_cache_dir: got ''; expected the path of a folder"),
        ({"l2_cache_dir": "a\0b"}, "l2_cache_dir: got 'a\\x00b'; expected the path of a folder ("),
        ({"l2_cache_dir": "~nobody-here/x"}, "l2_cache_dir: got '~nobody-here/x'; expected the p"),
        ({"prefetch": True}, "prefetch: got True; expected an SSD tier (l2_size_mb)"),
        ({"prefetch": 1}, "prefetch: got 1; expected True, False, or its values"),
        ({"prefetch": "followers"}, "prefetch: got 'followers'; expected True, False"),
        ({"prefetch": {"windows": 4}}, "prefetch.windows: got 4; expected one of: window, "),
        ({"prefetch": {"window": 0}}, "prefetch.window: got 0; expected at least 1"),
        ({"prefetch": {"window": "4"}}, "prefetch.window: got '4' (str); expected int"),
        ({"prefetch": {"rule": True}}, "prefetch.rule: got True; expected values of it"),
        ({"prefetch": {"rule": {"least": 1}}}, "prefetch.rule.least: got 1; expected one of: "),
        (
            {"prefetch": {"rule": {"confidence": 1}}},
            "prefetch.rule.confidence: got 1.0; expected between 0 and 1",
        ),
    ],
)
def test_wrong_settings_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    for l2_size_mb in (None, 1):
        if "prefetch" not in arguments or l2_size_mb is None:
            with pytest.raises(ConfigError) as caught:
                make(**{"l2_size_mb": l2_size_mb, **arguments})
            assert str(caught.value).startswith(message)
            make(l2_size_mb=1).shutdown()  # nothing was left open, while the error is handled


def test_numbers_of_numpy_are_numbers(make: Any, clock: Clock) -> None:
    cache = make(
        l1_size_mb=np.int64(1), quotas={RESULT: np.float32(0.5)}, seed=np.int64(3), ttl_jitter=0
    )
    cache.set("k", 1, ttl_seconds=np.float32(2.5), cost_seconds=np.int64(3))
    clock.now_s = 2.4
    assert cache.get("k") == 1
    clock.now_s = 2.5
    assert cache.get("k") is None
    assert cache.get_cache_stats()["overall"]["seconds_saved"] == 3


async def answer_later() -> int:
    return 1


def test_wrong_calls_are_named_and_change_nothing(make: Any) -> None:
    cache = make()
    cache.set("k", 1)
    for call, message in (
        (lambda: cache.set("k", {1, 2}), "cannot cache a value of type set"),
        (lambda: cache.set("k", 2, ttl_seconds=-1), "ttl_seconds: got -1"),
        (lambda: cache.set("k", 2, cost_seconds=float("nan")), "cost_seconds: got nan"),
        (lambda: cache.set("k", 2, cost_seconds=float("inf")), "cost_seconds: got inf; expected 0"),
        (lambda: cache.set("k", 2, cost_seconds=10**400), "cost_seconds: got 1000"),
        (lambda: cache.set("k", 2, cost_seconds=True), "cost_seconds: got True"),
        (lambda: cache.set("k", 2, ttl_seconds=10**400), "ttl_seconds: got 1000"),
        (lambda: cache.set("k", 2, [1]), r"cache_type: got \[1\]"),
        (lambda: cache.get_or_compute("n", None), "compute: got None; expected a function"),
        (lambda: cache.get_or_compute("n", answer_later), "compute: got a coroutine function"),
        (lambda: asyncio.run(cache.get_or_compute_async("n", None)), "compute: got None"),
        (lambda: asyncio.run(cache.get_or_compute_async("n", int)), "that returns int; expected a"),
        (lambda: cache.set("k", 2, "answer"), "cache_type: got 'answer'"),
        (lambda: cache.set("k", 2, tags="doc"), "tags: got 'doc'; expected texts"),
        (lambda: cache.set("k", 2, tags=5), "tags: got 5; expected texts"),
        (lambda: cache.set("k", 2, tags=None), "tags: got None; expected texts"),
        (lambda: cache.set("k", 2, tags=[["doc"]]), r"tags: got \[\['doc'\]\]"),
        (lambda: cache.set("k", 2, tags=(tag for tag in ("doc", ""))), r"tags: got \['doc', ''\]"),
        (lambda: cache.get_or_compute("n", int, tags=lambda _: "doc"), "tags: got 'doc'"),
        (lambda: cache.get_or_compute("n", int, tags=lambda _: None), "tags: got None"),
        (lambda: cache.set("k", 2, tags=[1]), r"tags: got \[1\]"),
        (lambda: cache.get("k", "answer"), "cache_type: got 'answer'"),
        (lambda: cache.invalidate_pattern(""), "pattern: got ''"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert cache.get("k") == 1
    assert cache.get("n") is None


def test_a_value_larger_than_the_tiers_is_not_kept(make: Any) -> None:
    cache = make(l1_size_mb=0.01, l2_size_mb=0.1)
    cache.set("k", "small")
    cache.set("k", "x" * 50_000)  # larger than L1 alone
    assert cache.get("k") == "x" * 50_000
    cache.set("k", np.random.default_rng(0).bytes(200_000))
    assert cache.get("k") is None, "nor is what it replaced"
    assert cache.get_cache_stats()["l2_cache"]["rejected_too_large"] == 1


def test_invalidating_by_key_type_glob_and_tag(make: Any) -> None:
    cache = make(l1_size_mb=0.01, l2_size_mb=1)  # most of it is on SSD
    for number in range(40):
        tags = [f"doc{number}", "even" if number % 2 == 0 else "odd"]
        cache.set(f"user:{number}", "x" * 300, tags=tags)
    cache.set("user:1", "vector", VECTOR)
    assert cache.invalidate("user:1", RESULT)
    assert (cache.get("user:1"), cache.get("user:1", VECTOR)) == (None, "vector")
    assert cache.invalidate("user:1")
    assert not cache.invalidate("user:1")
    assert cache.invalidate_pattern("user:1?") == 10
    assert cache.invalidate_pattern("USER:*") == 0
    assert cache.invalidate_tag("even") == 15
    assert cache.invalidate_tag("doc21") == 1
    assert cache.invalidate_tag("doc21") == 0
    left = [number for number in range(40) if cache.get(f"user:{number}") is not None]
    assert left == [3, 5, 7, 9, 23, 25, 27, 29, 31, 33, 35, 37, 39]
    assert cache.clear() == 13
    assert cache.get("user:3") is None


def test_globs_match_str_keys_alone(make: Any) -> None:
    cache = make(l1_size_mb=0.004, l2_size_mb=1)
    others = [5, b"x", ("a",), None]
    for key in (*others, "a", ""):
        cache.set(key, "x" * 200)
        cache.set(key, "x" * 200, VECTOR)
    assert cache.invalidate_pattern("*") == 4
    assert [cache.get(key) for key in ("a", "")] == [None, None]
    assert all(cache.get(key, kind) for key in others for kind in (RESULT, VECTOR))
    for key, kept in ((7, "computed"), ("", None)):
        compute = lambda: "computed" if cache.invalidate_pattern("*") == 0 else None  # noqa: E731
        assert cache.get_or_compute(key, compute) == "computed"
        assert cache.get(key) == kept


def test_tags_of_any_iterable_are_kept(make: Any) -> None:
    cache = make()
    cache.set("generator", 1, tags=(tag for tag in ["doc"]))
    cache.set("map", 1, tags=map(str, [7]))
    cache.get_or_compute("computed", lambda: 1, tags=(tag for tag in ["doc"]))
    cache.get_or_compute("read off", lambda: ["doc"], tags=lambda value: (tag for tag in value))
    assert cache.invalidate_tag("7") == 1
    assert cache.invalidate_tag("doc") == 3
    assert cache.get("generator") is cache.get("map") is cache.get("read off") is None


def test_another_epoch_never_serves_what_an_earlier_one_stored(make: Any) -> None:
    cache = make(l2_size_mb=1, epoch="index-1")
    cache.set("k", "old")
    cache.shutdown()
    cache = make(l2_size_mb=1, epoch="index-2")
    assert cache.get("k") is None
    cache.set("k", "new")
    assert cache.set_epoch("index-3") >= 1
    assert cache.get("k") is None
    cache.set_epoch("index-2")
    assert cache.get("k") is None


def test_a_folder_that_cannot_be_looked_at_costs_hits_not_requests(
    make: Any, tmp_path: Path
) -> None:
    """Its name is too long; so does one below a folder that may not be entered."""
    cache = make(l2_size_mb=1, l2_cache_dir=tmp_path / ("n" * 300))
    cache.set("k", "v")
    assert cache.get("k") == "v"
    assert cache.get_cache_stats()["l2_cache"]["errors"] > 0


def test_what_is_on_ssd_is_there_again_and_ages_meanwhile(make: Any, clock: Clock) -> None:
    cache = make(l1_size_mb=0.002, l2_size_mb=1)
    for number in range(5):
        cache.set(f"k{number}", f"v{number}", tags=[f"doc{number}"])
    with pytest.raises(ConfigError, match=r"l2_cache_dir: .* is used by another process"):
        make(l2_size_mb=1)
    cache.shutdown()
    clock.now_s = 3599.0
    cache = make(l2_size_mb=1)
    assert cache.get("k0") == "v0"
    assert cache.invalidate_tag("doc1") == 1
    assert cache.get("k1") is None
    clock.now_s = 3600.0
    assert cache.get("k0") is None


def test_expire_drops_what_is_too_old_from_both_tiers(make: Any, clock: Clock) -> None:
    cache = make(l2_size_mb=1)
    for key, life_s in (("short", 5.0), ("long", 50.0)):
        cache.set(key, key, ttl_seconds=life_s)
    cache.flush()
    clock.now_s = 6.0
    assert cache.expire() == 2, "in RAM and on SSD"
    assert cache.expire() == 0
    tiers = cache.get_cache_stats()
    assert (tiers["l1_cache"]["entries"], tiers["l2_cache"]["entries"]) == (1, 1)
    assert [cache.get(key) for key in ("short", "long")] == [None, "long"]


def test_what_is_flushed_is_there_again(make: Any, clock: Clock) -> None:
    cache = make(l2_size_mb=1)
    cache.set("kept", "v", tags=["doc"])
    cache.set("removed", 1)
    cache.set("expired", 1, ttl_seconds=5)
    cache.invalidate("removed")
    clock.now_s = 6.0
    assert cache.flush() == 1
    assert cache.flush() == 0, "it is there"
    cache.set("lost", 1)
    cache.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        cache.flush()
    cache = make(l2_size_mb=1)
    assert [cache.get(key) for key in ("removed", "expired", "lost")] == [None] * 3
    assert cache.get("kept") == "v"
    assert cache.invalidate_tag("doc") == 1
    assert make().flush() == 0


def test_a_folder_that_cannot_be_written_leaves_the_ram_tier(make: Any, tmp_path: Path) -> None:
    (tmp_path / "l2").mkdir()
    (tmp_path / "l2" / FORMAT_FOLDER).write_text("a file")
    cache = make(l2_size_mb=1)
    cache.set("k", 1)
    assert cache.get("k") == 1
    assert cache.get_cache_stats()["l2_cache"]["errors"] == 1


def test_types_with_a_quota_neither_give_nor_take(make: Any) -> None:
    cache = make(l1_size_mb=0.1, quotas={VECTOR: 0.25})
    for number in range(10):
        cache.set(f"v{number}", number, VECTOR)
    for number in range(500):
        cache.set(f"k{number}", "x" * 50)
    assert [cache.get(f"v{number}", VECTOR) for number in range(10)] == list(range(10))
    for number in range(500):
        cache.set(f"v{number}", number, VECTOR)
    l1 = cache.get_cache_stats()["l1_cache"]
    share = l1["by_type"]["embedding"]["bytes"] / l1["capacity_bytes"]
    assert 0.2 < share <= 0.25
    assert l1["by_type"]["query_result"]["bytes"] / l1["capacity_bytes"] > 0.7
    assert l1["utilisation"] <= 1


def test_jitter_spreads_expiry_and_a_seed_repeats_it(make: Any, clock: Clock) -> None:
    def alive(seed: int) -> list[list[int]]:
        cache = make(ttl_jitter=0.5, seed=seed)
        clock.now_s = 0.0
        for number in range(50):
            cache.set(f"k{number}", number, ttl_seconds=100)
        left = []
        for clock.now_s in (49.9, 75.0, 100.0):
            left.append([n for n in range(50) if cache.get(f"k{n}") is not None])
        return left

    first, again, other = alive(1), alive(1), alive(2)
    assert first == again != other
    assert (len(first[0]), first[2]) == (50, [])
    assert 15 < len(first[1]) < 35


def test_half_precision_is_for_embeddings_alone(make: Any) -> None:
    cache = make(float16_embeddings=True)
    vector = np.array([0.1, 0.2], dtype=np.float32)
    cache.set("k", vector, VECTOR)
    cache.set("k", vector)
    np.testing.assert_array_equal(cache.get("k"), vector)
    rounded = cache.get("k", VECTOR)
    np.testing.assert_array_equal(rounded, vector.astype(np.float16).astype(np.float32))
    first = cache.get_or_compute("computed", lambda: vector, VECTOR)
    np.testing.assert_array_equal(first, rounded, "who computes gets what all others get")


def test_statistics_count_every_request_once(make: Any, clock: Clock) -> None:
    cache = make(l1_size_mb=0.004, l2_size_mb=1)
    for number in range(10):
        cache.set(f"k{number}", "x" * 100, cost_seconds=2.0)
    hits = sum(cache.get(f"k{number}") is not None for number in [0, 9, 5, 11, 12])
    assert cache.get_or_compute("new", lambda: 1, OUTPUT) == 1
    stats = cache.get_cache_stats()
    overall = stats["overall"]
    assert (overall["total_requests"], overall["total_hits"], overall["total_misses"]) == (6, 3, 3)
    assert hits == 3
    assert overall["overall_hit_rate"] == 0.5
    assert overall["l1_hit_rate"] + overall["l2_hit_rate"] == pytest.approx(0.5)
    assert overall["l2_hit_rate"] > 0
    assert overall["seconds_saved"] == 6.0
    assert overall["access_time"]["accesses"] == 6
    assert overall["average_access_time_ms"] > 0
    assert stats["by_type"]["model_output"]["misses"] == 1
    assert stats["by_type"]["embedding"]["hit_rate"] is None
    assert stats["l2_cache"]["access_time"]["accesses"] == stats["l2_cache"]["hits"] > 0
    assert json.loads(json.dumps(stats)) == stats
    assert make().get_cache_stats()["l2_cache"] is None


def test_shut_down_is_shut_down(make: Any) -> None:
    with make(l2_size_mb=1) as cache:
        cache.set("k", 1)
    cache.shutdown()
    for call in (lambda: cache.get("k"), lambda: cache.set("k", 1), cache.clear):
        with pytest.raises(RuntimeError, match="shut down"):
            call()
    begun, release = threading.Event(), threading.Event()
    cache = make()
    results: list[object] = []

    def compute() -> bool:
        begun.set()
        return release.wait(200)

    thread = threading.Thread(target=lambda: results.append(cache.get_or_compute("k", compute)))
    thread.start()
    assert begun.wait(200)
    cache.shutdown()  # does not wait for what is being computed
    release.set()
    thread.join()
    assert results == [True]


# Single flight and stale values: threads meet at events, never by the clock.


def test_threads_that_miss_together_compute_once(make: Any) -> None:
    cache = make()
    calls, results = [], []
    barrier, release = threading.Barrier(64), threading.Event()

    def compute() -> list[int]:
        calls.append(1)
        release.wait(200)
        return [1, 2]

    def ask() -> None:
        barrier.wait(200)
        results.append(cache.get_or_compute("k", compute))

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    while cache.get_cache_stats()["overall"]["joined_flights"] < 63:
        release.wait(0.002)  # leaves the interpreter to the others
    release.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert results == [[1, 2]] * 64
    assert len({id(result) for result in results}) == 64, "each has a copy of its own"
    overall = cache.get_cache_stats()["overall"]
    assert (overall["total_misses"], overall["joined_flights"]) == (64, 63)


def test_coroutines_and_threads_share_a_flight(make: Any) -> None:
    cache = make()
    calls = []

    async def main() -> list[object]:
        release = asyncio.Event()

        async def compute() -> str:
            calls.append(1)
            await release.wait()
            return "value"

        asked = [asyncio.ensure_future(cache.get_or_compute_async("k", compute)) for _ in range(32)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        thread = loop.run_in_executor(None, cache.get_or_compute, "k", lambda: "another")
        while cache.get_cache_stats()["overall"]["joined_flights"] < 32:
            await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*asked, thread)

    assert asyncio.run(main()) == ["value"] * 33
    assert len(calls) == 1


def test_an_error_is_everybodys_and_is_not_kept(make: Any) -> None:
    cache = make()

    async def main() -> list[object]:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise LookupError("no such thing")

        asked = [cache.get_or_compute_async("k", fail) for _ in range(3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(result) for result in asyncio.run(main())] == [LookupError] * 3
    assert cache.get_or_compute("k", lambda: 1) == 1


def test_if_who_computes_is_cancelled_another_one_does(make: Any) -> None:
    cache = make()
    calls = []

    async def main() -> list[object]:
        release = asyncio.Event()

        async def compute() -> int:
            calls.append(1)
            await release.wait()
            return len(calls)

        asked = [asyncio.ensure_future(cache.get_or_compute_async("k", compute)) for _ in range(4)]
        await asyncio.sleep(0)
        asked[0].cancel()
        asked[3].cancel()  # who only waits, cancelled, takes nobody along
        while len(calls) < 2:
            await asyncio.sleep(0)
        release.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results[::3]] == [asyncio.CancelledError] * 2
    assert results[1:3] == [2, 2]


def test_computing_a_key_inside_its_own_computation_does_not_wait_for_itself(make: Any) -> None:
    cache = make()
    inner = cache.get_or_compute("k", lambda: cache.get_or_compute("k", lambda: "inner") + "!")
    assert inner == "inner!"

    async def main() -> object:
        async def compute() -> object:
            return cache.get_or_compute("a", lambda: "from a blocking call")

        return await cache.get_or_compute_async("a", compute)

    assert asyncio.run(main()) == "from a blocking call"


def test_what_cannot_be_kept_is_returned_and_counted(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    large, deep = {"n": 10**5000}, list[Any]()
    for _ in range(400):
        deep = [deep]
    with caplog.at_level(logging.WARNING):
        for value in ({1, 2}, large, deep):
            assert cache.get_or_compute("k", lambda value=value: value) is value
    assert cache.get_cache_stats()["overall"]["uncacheable"] == 3
    assert len(caplog.records) == 1
    assert "of type set" in caplog.text


def test_what_is_invalidated_while_it_is_computed_is_not_kept(make: Any) -> None:
    for invalidate in (
        lambda cache: cache.invalidate("k"),
        lambda cache: cache.invalidate_pattern("k*"),
        lambda cache: cache.invalidate_tag("doc"),
        lambda cache: cache.clear(),
        lambda cache: cache.set_epoch("another"),
    ):
        cache = make()

        def compute(cache: Any = cache, invalidate: Any = invalidate) -> str:
            invalidate(cache)
            return "old"

        assert cache.get_or_compute("k", compute, tags=lambda _: ["doc"]) == "old"
        assert cache.get("k") is None
        cache.get_or_compute("k", lambda: "kept", tags=["doc"])
        cache.invalidate_tag("another")
        cache.invalidate("another")
        cache.invalidate_pattern("another*")
        assert cache.get("k") == "kept"


def test_a_set_is_newer_than_what_is_being_computed(make: Any) -> None:
    cache = make()

    def compute(**arguments: Any) -> str:
        cache.set("k", "newer", **arguments)
        assert cache.get_or_compute("k", lambda: "computed after") != "older"
        return "older"

    assert cache.get_or_compute("k", compute) == "older", "its caller asked before the set"
    assert cache.get("k") == "newer"
    cache.invalidate("k")
    assert cache.get_or_compute("k", lambda: compute(ttl_seconds=0)) == "older"
    assert cache.get("k") == "computed after"
    cache.invalidate("k")
    for _ in range(3):
        cache.set("k", "given")
        assert cache.get_or_compute("k", lambda: "wrong") == "given"
    cache.invalidate("k")
    assert cache.get_or_compute("k", lambda: cache.set("another", 1)) is None
    assert cache.get("k", default="nothing") is None


def test_who_asks_after_a_set_does_not_join_who_computes_since_before(make: Any) -> None:
    cache = make()
    begun, release = threading.Event(), threading.Event()
    answers: list[object] = []

    def compute() -> str:
        begun.set()
        release.wait(200)
        return "older"

    thread = threading.Thread(target=lambda: answers.append(cache.get_or_compute("k", compute)))
    thread.start()
    assert begun.wait(200)
    cache.set("k", "removes it", ttl_seconds=0)
    assert cache.get_or_compute("k", lambda: "newer") == "newer"
    release.set()
    thread.join()
    assert answers == ["older"]
    assert cache.get("k") == "newer"


def test_what_is_computed_anew_yields_to_what_is_set_meanwhile(make: Any, clock: Clock) -> None:
    cache = make(stale_while_revalidate_seconds=10.0)
    cache.set("k", "old", ttl_seconds=5)
    clock.now_s = 6.0
    begun, release, before = threading.Event(), threading.Event(), threading.enumerate()

    def compute() -> str:
        begun.set()
        release.wait(200)
        return "older"

    assert cache.get_or_compute("k", compute) == "old"
    assert begun.wait(200)
    cache.set("k", "newer")
    release.set()
    for thread in set(threading.enumerate()) - set(before):
        thread.join()
    assert cache.get("k") == "newer"
    assert cache.get_cache_stats()["overall"]["outdated_results"] == 1


def test_a_stale_value_is_served_while_it_is_computed_anew(make: Any, clock: Clock) -> None:
    cache = make(stale_while_revalidate_seconds=10.0)
    cache.set("k", "old", ttl_seconds=5)
    clock.now_s = 5.0
    assert cache.get("k") is None, "get returns nothing stale"
    begun, release = threading.Event(), threading.Event()

    def compute() -> str:
        begun.set()
        release.wait(200)
        return "new"

    for _ in range(3):
        assert cache.get_or_compute("k", compute) == "old"
    assert begun.wait(200)
    release.set()
    while (found := cache.get_or_compute("k", lambda: "wrong")) == "old":
        threading.Event().wait(0.002)
    assert found == "new"
    assert cache.get_cache_stats()["overall"]["stale_hits"] >= 3
    cache.set("k", "old", ttl_seconds=5)
    clock.now_s = 20.0
    assert cache.get_or_compute("k", lambda: "new") == "new", "too stale"


def test_a_stale_value_is_served_to_coroutines_too(
    make: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(stale_while_revalidate_seconds=10.0)
    cache.set("k", "old", ttl_seconds=5)
    clock.now_s = 6.0

    async def main() -> None:
        async def fail() -> None:
            raise LookupError("no such thing")

        async def compute() -> str:
            return "new"

        assert await cache.get_or_compute_async("k", fail) == "old"
        await asyncio.sleep(0)
        assert await cache.get_or_compute_async("k", compute) == "old"
        await asyncio.sleep(0)
        assert await cache.get_or_compute_async("k", fail) == "new"

    asyncio.run(main())
    assert "could not be computed anew" in caplog.text


# Prefetching. The clock stands still; threads are waited for by what they have counted.


def ask_until(
    cache: AggressiveCache,
    is_done: Callable[[dict[str, Any]], bool],
    ask: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Ask for 40 keys in turn, of which eight fit into RAM, until the statistics of prefetching
    are so, and return them. `ask`: look one up, and set it where it misses; None: `get`, `set`."""

    def get_or_set(name: str) -> None:
        if cache.get(name) is None:
            cache.set(name, "v" * 100)

    for number in range(40_000):
        (ask or get_or_set)(f"k{number % 40}")
        threading.Event().wait(0.0005)  # leaves the interpreter to the others
        if is_done(stats := cache.get_cache_stats()["prefetch"]):
            return stats
    raise AssertionError(stats)


def tenders() -> set[threading.Thread]:
    """Also of earlier tests: a cache that is shut down waits for nobody."""
    return {thread for thread in threading.enumerate() if thread.name == "cache-tender"}


PREFETCHES: dict[str, Any] = {"l1_size_mb": 0.0095, "l2_size_mb": 1, "prefetch": True}


def test_what_comes_next_is_brought_into_ram_between_the_calls(make: Any) -> None:
    assert make().get_cache_stats()["prefetch"] is None
    before = tenders()
    cache = make(**PREFETCHES)
    assert tenders() <= before
    assert cache.get_cache_stats()["prefetch"]["mode"] == "trial"
    prefetch = ask_until(cache, lambda stats: stats["mode"] == "on" and stats["used"] > 200)
    assert prefetch["prefetched"] == prefetch["used"] + prefetch["unused"] + prefetch["open"]
    stats = cache.get_cache_stats()
    assert stats["l1_cache"]["hits"] > 200
    assert stats["l2_cache"]["stored"] >= 32
    assert json.loads(json.dumps(stats)) == stats


def test_prefetching_takes_values_over_those_of_the_configuration(make: Any) -> None:
    rule = {"trial_prefetches": 16, "block_prefetches": 16}
    cache = make(**{**PREFETCHES, "prefetch": {"window": 2, "rule": rule}})
    prefetch = ask_until(cache, lambda stats: stats["mode"] == "on")
    assert prefetch["switched"][1]["settled"] <= 16


def test_who_computes_on_a_miss_prefetches_too(make: Any) -> None:
    cache = make(**PREFETCHES)

    async def compute() -> str:
        return "v" * 100

    ask_until(
        cache,
        lambda stats: stats["prefetched"] >= 5,
        lambda name: asyncio.run(cache.get_or_compute_async(name, compute)),
    )
    cache.shutdown()
    other = make(**PREFETCHES)
    ask_until(
        other,
        lambda stats: stats["prefetched"] >= 5,
        lambda name: other.get_or_compute(name, lambda: "v" * 100),
    )


@pytest.mark.parametrize("how", ["shut down", "dropped"])
def test_the_thread_that_prefetches_ends_with_its_cache(tmp_path: Path, how: str) -> None:
    before = tenders()
    cache = AggressiveCache(**PREFETCHES, l2_cache_dir=tmp_path, clock=Clock())
    cache.get("k")
    (thread,) = tenders() - before
    if how == "shut down":
        cache.shutdown()
        assert cache.get_cache_stats()["prefetch"]["prefetched"] == 0
    del cache
    thread.join(200)
    assert not thread.is_alive()
    AggressiveCache(**PREFETCHES, l2_cache_dir=tmp_path, clock=Clock()).shutdown()


def test_prefetching_goes_on_after_an_error_in_its_thread(make: Any) -> None:
    failures: list[int] = []

    def clock() -> float:
        if threading.current_thread().name == "cache-tender" and not failures:
            failures.append(1)
            raise OSError("once")
        return 0.0

    cache = make(**PREFETCHES, clock=clock)
    ask_until(cache, lambda stats: stats["used"] > 20)
    assert failures


def test_who_sets_or_invalidates_as_the_cache_shuts_down_is_told(make: Any, clock: Clock) -> None:
    """What returns is done, so that an old value cannot come back in the next process."""
    cache = make(l2_size_mb=1)
    cache.set("a", "old")
    cache.flush()

    class ShutsDown:
        def __iter__(self) -> Any:  # a moment after it was checked that the cache is open
            cache.shutdown()
            return iter(["tag"])

    with pytest.raises(RuntimeError, match="shut down"):
        cache.set("a", "new", tags=ShutsDown())
    assert make(l2_size_mb=1).get("a") == "old"


def test_a_dropped_cache_releases_its_folder_at_once(tmp_path: Path) -> None:
    gc.disable()  # so that nothing but the last reference does it
    try:
        cache = AggressiveCache(1, 1, tmp_path)
        cache.set("a", 1)
        assert cache.get("a") == 1
        del cache
        AggressiveCache(1, 1, tmp_path).shutdown()
    finally:
        gc.enable()


def test_shutting_down_waits_for_nobody_who_prefetches(make: Any) -> None:
    """The clock is asked before each turn: a thread that hangs there holds no lock."""
    hangs, release = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "cache-tender":
            hangs.set()
            release.wait(200)
        return 0.0

    cache = make(**PREFETCHES, clock=clock)
    cache.set("k", 1)
    assert cache.get("k") == 1
    assert hangs.wait(200)
    assert cache.get("k") == 1, "look-ups do not wait either"
    cache.shutdown()
    assert not release.is_set()
    release.set()


def test_threads_ask_while_another_one_prefetches_and_changes_are_seen(make: Any) -> None:
    cache = make(**PREFETCHES)
    versions, wrong = [0] * 40, list[int]()

    def work(part: int) -> None:
        for number in 20 * list(range(40)):
            at_least = versions[number]
            found = cache.get(f"k{number}")
            if found is not None and found[0] < at_least:
                wrong.append(number)
            if number % 4 == part:
                cache.invalidate(f"k{number}")
                versions[number] += 1
                cache.set(f"k{number}", [versions[number], "v" * 90])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [cache.get(f"k{number}")[0] for number in range(40)] == versions
    assert cache.get_cache_stats()["l2_cache"]["errors"] == 0
