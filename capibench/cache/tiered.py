"""The whole cache of a run: RAM before SSD, a time to live per type, and one count of it all.

An entry that must leave L1 moves down to L2 with the rest of its life; an L2 hit is copied up
again, its expiry unchanged. The L2 copy stays, so that moving down once more writes nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from capibench.cache.envelope import encode
from capibench.cache.keys import CacheType
from capibench.cache.l1 import L1
from capibench.cache.l2 import L2
from capibench.cache.policy import EvictionPolicy
from capibench.cache.residents import Counters, Entry

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where a value was found; `tier` tells a cached None from a miss.

    "off": this type is not cached by the configuration; nothing was looked up or counted.
    """

    value: Any
    tier: Literal["l1", "l2", "miss", "off"]

    @property
    def is_hit(self) -> bool:
        return self.tier in ("l1", "l2")


_MISS = Lookup(None, "miss")
_OFF = Lookup(None, "off")


class TieredCache:
    """Thread-safe. `now` is seconds on any one clock that does not go back (real or virtual)."""

    def __init__(self, l1: L1, l2: L2 | None, ttl_s: Mapping[CacheType, float]) -> None:
        """`ttl_s` has the types that are cached; a type with 0, or without entry, is not."""
        self._l1 = l1
        self._l2 = l2
        self._ttl_s = {kind: seconds for kind, seconds in ttl_s.items() if seconds > 0}
        self._lock = threading.Lock()

    def caches(self, kind: CacheType) -> bool:
        """Whether this type is cached at all."""
        return kind in self._ttl_s

    def lookup(self, kind: CacheType, key: bytes, now: float) -> Lookup:
        """What is cached under `key` (made by `cache_key` of the same `kind`)."""
        if kind not in self._ttl_s:
            return _OFF
        with self._lock:
            found = self._l1.get(kind, key, now)
            if found is not None:
                return Lookup(found.value, "l1")
            if self._l2 is None:
                return _MISS
            found = self._l2.get(kind, key, now)
            if found is None:
                return _MISS
            if self._l1.fits(key, found.entry):
                self._demote(self._l1.put(key, found.entry, now), now)
                if key in self._l1:
                    self._l2.counters[kind].promoted += 1
            return Lookup(found.value, "l2")

    def put(self, kind: CacheType, key: bytes, value: object, cost_s: float, now: float) -> None:
        """Keep `value`, which took `cost_s` seconds to compute, for the time to live of its type.

        Raises:
            TypeError: `value` is of a type that no envelope holds (see `envelope.encode`).
        """
        ttl_s = self._ttl_s.get(kind)
        if ttl_s is None:
            return
        entry = Entry(kind, encode(value), cost_s, now + ttl_s)
        with self._lock:
            if self._l2 is not None:
                self._l2.remove(key)  # an older value must not come back
            self._demote(self._l1.put(key, entry, now), now)

    def remove(self, key: bytes) -> bool:
        """Invalidate `key` in every tier; whether it was there."""
        with self._lock:
            was_in_l1 = self._l1.remove(key)
            was_in_l2 = self._l2 is not None and self._l2.remove(key)
            return was_in_l1 or was_in_l2

    def expire(self, now: float) -> int:
        """Drop all that is stale; how many entries. (Full tiers do it themselves.)"""
        with self._lock:
            return self._l1.expire(now) + (self._l2.expire(now) if self._l2 is not None else 0)

    def stats(self) -> dict[str, Any]:
        """Counters as JSON: `tiers.<tier>` with totals and `by_type`, `types.<type>` over both
        tiers (one look-up that ends in L2 is a miss of L1, but a hit of its type), `l2_errors`
        (failed SSD operations) and `l2_first_error`. Bytes are encoded values; a tier's `bytes`
        are with keys and overhead."""
        with self._lock:
            tiers = {"l1": _tier_stats(self._l1, self._ttl_s)}
            if self._l2 is not None:
                tiers["l2"] = _tier_stats(self._l2, self._ttl_s)
            return {
                "tiers": tiers,
                "types": {kind.value: self._type_stats(kind) for kind in self._ttl_s},
                "l2_errors": 0 if self._l2 is None else self._l2.num_errors,
                "l2_first_error": None if self._l2 is None else self._l2.first_error,
            }

    def close(self) -> None:
        """Release the SSD tier's folder at once."""
        with self._lock:
            if self._l2 is not None:
                self._l2.close()

    def _demote(self, displaced: list[tuple[bytes, Entry]], now: float) -> None:
        if self._l2 is None:
            return
        for key, entry in displaced:
            if self._l2.put(key, entry, now):
                self._l1.counters[entry.kind].demoted += 1

    def _type_stats(self, kind: CacheType) -> dict[str, int]:
        l1 = self._l1.counters[kind]
        l2 = Counters() if self._l2 is None else self._l2.counters[kind]
        lookups = l1.hits + l1.misses
        hits = l1.hits + l2.hits
        return {
            "lookups": lookups,
            "hits": hits,
            "l1_hits": l1.hits,
            "l2_hits": l2.hits,
            "misses": lookups - hits,
            "hit_bytes": l1.hit_bytes + l2.hit_bytes,
        }


def _tier_stats(tier: L1 | L2, kinds: Mapping[CacheType, float]) -> dict[str, Any]:
    by_type = {kind.value: asdict(tier.counters[kind]) for kind in kinds}
    totals = dict.fromkeys(asdict(Counters()), 0)
    for counters in by_type.values():
        for name, value in counters.items():
            totals[name] += value
    # Reopened entries of types that are off still take room until they are evicted or expire.
    totals |= {"bytes": tier.num_bytes, "entries": len(tier)}
    return {"capacity_bytes": tier.capacity_bytes, **totals, "by_type": by_type}


@dataclass
class NoCache:
    """`cache=none`: the baseline; the pipeline consults nothing."""

    def open(self, folder: Path) -> None:
        """Nothing to open."""


@dataclass
class Tiers:
    """Sizes in MiB (fractions allowed); `l2_mib` None: no SSD tier."""

    l1_mib: float
    l2_mib: float | None

    def __post_init__(self) -> None:
        for name, mib in (("l1_mib", self.l1_mib), ("l2_mib", self.l2_mib)):
            if mib is not None and not (math.isfinite(mib) and mib * _MIB >= 1):
                raise ValueError(f"{name}: got {mib}; expected at least one byte")


@dataclass
class CacheChoice:
    """Every cached choice: which policy, in which tiers, which types, for how long."""

    policy: EvictionPolicy  # a prototype: each tier decides with a fresh copy
    tiers: Tiers
    types: tuple[CacheType, ...]
    ttl_s: Mapping[CacheType, float]  # 0: this type is not cached

    def __post_init__(self) -> None:
        if not isinstance(self.policy, EvictionPolicy):
            raise ValueError(f"policy: got {self.policy!r}; expected an eviction policy")
        if not isinstance(self.tiers, Tiers):
            raise ValueError(f"tiers: got {self.tiers!r}; expected sizes of tiers")
        if not self.types:
            raise ValueError("types: got none; expected at least one (cache=none caches nothing)")
        for kind in self.types:
            if kind not in self.ttl_s:
                raise ValueError(f"ttl_s: got no {kind.value}; expected one for each of types")
        for kind, seconds in self.ttl_s.items():
            if not seconds >= 0:
                raise ValueError(f"ttl_s.{kind.value}: got {seconds}; expected at least 0")

    def open(self, folder: Path) -> TieredCache:
        """Start with an empty L1 and with what `folder/l2` holds (created with mode 0700).

        Raises:
            ConfigError: another process uses that folder.
        """
        l1 = L1(self.policy, int(self.tiers.l1_mib * _MIB))
        l2 = None
        if self.tiers.l2_mib is not None:
            l2 = L2(self.policy, int(self.tiers.l2_mib * _MIB), folder / "l2")
        return TieredCache(l1, l2, {kind: self.ttl_s[kind] for kind in self.types})
