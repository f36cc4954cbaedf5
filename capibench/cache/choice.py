"""The cache as a choice of the configuration: what is built before anything is opened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from capibench.cache.keys import CacheType
from capibench.cache.policy import EvictionPolicy
from capibench.cache.prefetching.prefetch import Followers, PrefetchChoice
from capibench.cache.similar.semantic import Cosine, SemanticChoice
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.tiered import TieredCache

_MIB = 1 << 20


@dataclass
class NoCache:
    """`cache=none`: the baseline; the pipeline consults nothing."""

    single_flight: ClassVar[bool] = False
    similar: ClassVar[Cosine | None] = None
    rounds_embeddings: ClassVar[bool] = False

    def open(self, folder: Path, now: float, rng: np.random.Generator) -> None:
        """Nothing to open."""


@dataclass
class Tiers:
    """Sizes in MiB (fractions allowed); `l2_mib` None: no SSD tier."""

    l1_mib: float
    l2_mib: float | None
    quotas: Mapping[CacheType, float]  # the share of each tier that a type has to itself
    compression: Compression | None  # of what goes to the SSD
    float16_types: tuple[CacheType, ...]  # whose float32 arrays are rounded to float16

    def __post_init__(self) -> None:
        for name, mib in (("l1_mib", self.l1_mib), ("l2_mib", self.l2_mib)):
            if mib is not None and not (math.isfinite(mib) and mib * _MIB >= 1):
                raise ValueError(f"{name}: got {mib}; expected at least one byte")
        check_quotas(self.quotas)


@dataclass
class Misses:
    """What happens on a miss, beside computing."""

    single_flight: bool  # who asks for what is being computed waits for that
    stale_s: float  # a value past its time to live is served that long while it is recomputed
    ttl_jitter: float  # entries live shorter by up to this share of their time to live

    def __post_init__(self) -> None:
        if not 0 <= self.stale_s < math.inf:
            raise ValueError(f"stale_s: got {self.stale_s}; expected at least 0")
        check_jitter("ttl_jitter", self.ttl_jitter)


@dataclass
class CacheChoice:
    """Every cached choice: which policy, in which tiers, which types, for how long."""

    policy: EvictionPolicy  # a prototype: each tier decides with a fresh copy
    tiers: Tiers
    misses: Misses
    semantic: SemanticChoice
    prefetch: PrefetchChoice
    types: tuple[CacheType, ...]
    ttl_s: Mapping[CacheType, float]  # 0: this type is not cached

    def __post_init__(self) -> None:
        if not isinstance(self.policy, EvictionPolicy):
            raise ValueError(f"policy: got {self.policy!r}; expected an eviction policy")
        for name, wanted in (
            ("tiers", Tiers),
            ("misses", Misses),
            ("semantic", SemanticChoice),
            ("prefetch", PrefetchChoice),
        ):
            if not isinstance(getattr(self, name), wanted):
                raise ValueError(f"{name}: got {getattr(self, name)!r}; expected a choice of it")
        if self.prefetches is not None and self.tiers.l2_mib is None:
            raise ValueError("prefetch: got followers; expected an SSD tier (cache/tiers=l1_l2)")
        if not self.types:
            raise ValueError("types: got none; expected at least one (cache=none caches nothing)")
        for kind in self.types:
            if kind not in self.ttl_s:
                raise ValueError(f"ttl_s: got no {kind.value}; expected one for each of types")
        for kind, seconds in self.ttl_s.items():
            if not seconds >= 0:
                raise ValueError(f"ttl_s.{kind.value}: got {seconds}; expected at least 0")
        caches_results = CacheType.QUERY_RESULT in self.types
        if self.similar is not None and not (
            caches_results and self.ttl_s[CacheType.QUERY_RESULT] > 0
        ):
            raise ValueError("semantic: got cosine; expected query_result among the cached types")

    @property
    def single_flight(self) -> bool:
        return self.misses.single_flight

    @property
    def rounds_embeddings(self) -> bool:
        """Whether a cached vector is not quite the one that was computed."""
        return CacheType.EMBEDDING in self.tiers.float16_types

    @property
    def similar(self) -> Cosine | None:
        """The semantic cache, where one was chosen."""
        return self.semantic if isinstance(self.semantic, Cosine) else None

    @property
    def prefetches(self) -> Followers | None:
        """How to prefetch, where it was chosen."""
        return self.prefetch if isinstance(self.prefetch, Followers) else None

    def open(self, folder: Path, now: float, rng: np.random.Generator) -> TieredCache:
        """Start with an empty L1 and with what `folder/l2` holds (created with mode 0700).

        Raises:
            ConfigError: another process uses that folder.
        """
        tiers, misses = self.tiers, self.misses
        l1 = L1(self.policy, int(tiers.l1_mib * _MIB), tiers.quotas)
        l2 = None
        if tiers.l2_mib is not None:
            l2 = L2(
                self.policy,
                int(tiers.l2_mib * _MIB),
                folder / "l2",
                now,
                quotas=tiers.quotas,
                compression=tiers.compression,
            )
        return TieredCache(
            l1,
            l2,
            {kind: self.ttl_s[kind] for kind in self.types},
            stale_s=misses.stale_s,
            ttl_jitter=misses.ttl_jitter,
            rng=rng,
            half_types=tiers.float16_types,
            prefetch=self.prefetches,
        )


def check_quotas(quotas: Mapping[CacheType, float]) -> None:
    """Refuse shares that do not fit into a tier."""
    for kind, share in quotas.items():
        if not 0 < share <= 1:
            raise ValueError(f"quotas.{kind.value}: got {share}; expected above 0, to 1")
    if sum(quotas.values()) > 1 + 1e-9:
        raise ValueError(f"quotas: got {sum(quotas.values())} in all; expected at most 1")


def check_jitter(name: str, share: float) -> None:
    """Refuse a jitter that would leave nothing of a life."""
    if not 0 <= share < 1:
        raise ValueError(f"{name}: got {share}; expected 0 to below 1")
