"""The yaml of the cache room: every choice builds and opens, and wrong values say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_files import choices
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.cache.keys import CacheType, cache_key
from capibench.config import build, conf_dir
from capibench.errors import ConfigError

CACHED = sorted(set(choices("cache")) - {"none", "belady"})


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(conf_dir()), version_base=None):
        yield


def make(name: str, *overrides: str) -> Any:
    node = OmegaConf.to_container(compose(f"cache/{name}", list(overrides)))["cache"]
    return build(node, "cache")


def opened(choice: Any, folder: Path) -> Any:
    return choice.open(folder, 0.0, np.random.default_rng(0))


PIPELINE_TYPES = (CacheType.QUERY_RESULT, CacheType.EMBEDDING, CacheType.MODEL_OUTPUT)


def test_none_opens_nothing(tmp_path: Path) -> None:
    assert opened(make("none"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tiers", ["l1", "l1_l2"])
@pytest.mark.parametrize("name", CACHED)
def test_every_choice_caches_every_type(tmp_path: Path, name: str, tiers: str) -> None:
    cache = opened(make(name, f"cache/tiers={tiers}"), tmp_path)
    for kind in PIPELINE_TYPES:
        assert cache.caches(kind)
        cache.put(kind, cache_key(kind, "q"), {"answer": kind.value}, 1.0, 0.0)
    assert cache.lookup(CacheType.QUERY_RESULT, cache_key(CacheType.QUERY_RESULT, "q"), 3599).is_hit
    assert not cache.lookup(
        CacheType.MODEL_OUTPUT, cache_key(CacheType.MODEL_OUTPUT, "q"), 1800
    ).is_hit
    assert (tmp_path / "l2").exists() == (tiers == "l1_l2")
    cache.close()


def test_one_choice_opens_twice_without_shared_state(tmp_path: Path) -> None:
    choice = make("lru")
    first, second = opened(choice, tmp_path), opened(choice, tmp_path)
    key = cache_key(CacheType.EMBEDDING, "q")
    first.put(CacheType.EMBEDDING, key, 1, 1.0, 0.0)
    assert second.lookup(CacheType.EMBEDDING, key, 0.0).tier == "miss"


def test_fractions_of_a_mib_are_sizes(tmp_path: Path) -> None:
    sizes = ("cache.tiers.l1_mib=0.5", "cache.tiers.l2_mib=1.5")
    cache = opened(make("lru", "cache/tiers=l1_l2", *sizes), tmp_path)
    tiers = cache.stats()["tiers"]
    assert (tiers["l1"]["capacity_bytes"], tiers["l2"]["capacity_bytes"]) == (1 << 19, 3 << 19)
    cache.close()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cache.tiers.l1_mib=0", r"cache\.tiers\.l1_mib: got 0\.0; expected at least one byte"),
        ("cache.tiers.l2_mib=-1", r"cache\.tiers\.l2_mib: got -1\.0; expected"),
        ("cache.tiers.l1_mib=nan", r"cache\.tiers\.l1_mib: got nan; expected"),
        ("cache.ttl_s.embedding=-1", r"cache\.ttl_s\.embedding: got -1\.0; expected at least 0"),
        ("cache.types=[answer]", r"cache\.types\[0\]: got 'answer'; expected one of query_result"),
        ("cache.tiers.float16_types=[x]", r"cache\.tiers\.float16_types\[0\]: got 'x'; expected"),
        ("+cache.tiers.quotas.embedding=2", r"cache\.tiers\.quotas\.embedding: got 2\.0; expected"),
        ("cache.misses.ttl_jitter=1", r"cache\.misses\.ttl_jitter: got 1\.0; expected 0 to"),
        ("cache.misses.stale_s=-1", r"cache\.misses\.stale_s: got -1\.0; expected at least 0"),
        ("cache/semantic=cosine cache.types=[embedding]", r"semantic: got cosine; expected query"),
        ("cache/semantic=cosine cache.semantic.audit_share=0", r"semantic\.audit_share: got 0"),
        ("cache/tiers=l1_l2 cache.tiers.compression.level=0", r"tiers\.compression\.level: got 0"),
        ("cache/prefetch=followers", r"cache\.prefetch: got followers; expected an SSD tier"),
        (
            "cache/prefetch=followers cache/tiers=l1_l2 cache.prefetch.window=0",
            r"cache\.prefetch\.window: got 0; expected at least 1",
        ),
        (
            "cache/prefetch=followers cache/tiers=l1_l2 cache.prefetch.rule.trial_prefetches=0",
            r"cache\.prefetch\.rule\.trial_prefetches: got 0; expected at least 1",
        ),
        (
            "cache/prefetch=followers cache/tiers=l1_l2 cache.prefetch.rule.least_precision=0.99",
            r"cache\.prefetch\.rule\.trial_prefetches: got 128; expected more",
        ),
        ("cache.types=[]", r"cache\.types: got none; expected at least one"),
        ("+cache.ttl_s.answer=1", r"cache\.ttl_s key: got 'answer'; expected one of"),
        ("~cache.ttl_s.embedding", r"cache\.ttl_s: got no embedding; expected"),
        ("cache.policy=lru", r"cache\.policy: got 'lru'"),
        ("cache.policy._target_=capibench.cache.choice.NoCache", r"cache\.policy: got NoCache"),
    ],
)
def test_wrong_values_are_named_with_key_and_expectation(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("lru", *override.split())


def test_a_type_that_is_not_listed_is_off(tmp_path: Path) -> None:
    cache = opened(make("lru", "cache.types=[embedding]"), tmp_path)
    assert cache.caches(CacheType.EMBEDDING)
    assert not cache.caches(CacheType.QUERY_RESULT)
