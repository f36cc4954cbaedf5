"""The counters of the tiers as one JSON document."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from capibench.cache.keys import CacheType
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Counters


def cache_stats(l1: L1, l2: L2 | None, computed_bytes: Mapping[CacheType, int]) -> dict[str, Any]:
    """`tiers.<tier>` with totals and `by_type`; `types.<type>` and `overall` over both tiers (one
    look-up that ends in L2 is a miss of L1, but a hit of its type); `l2_errors` (failed SSD
    operations) and `l2_first_error`.

    Bytes are encoded values; a tier's `bytes` are with keys, labels and overhead. Ratios are None
    where there is nothing to divide by.

    Args:
        computed_bytes: by type, of the values that were put.
    """
    kinds = list(computed_bytes)
    tiers = {"l1": _tier(l1, kinds)}
    if l2 is not None:
        tiers["l2"] = {**_tier(l2, kinds), **l2.stats()}
    types = {kind.value: _type(l1, l2, kind, computed_bytes[kind]) for kind in kinds}
    overall = _summed(types.values())
    return {
        "tiers": tiers,
        "types": {name: {**counts, **_rates(counts)} for name, counts in types.items()},
        "overall": {**overall, **_rates(overall)},
        "l2_errors": 0 if l2 is None else l2.num_errors,
        "l2_first_error": None if l2 is None else l2.first_error,
    }


def prefetch_facts(stats: Mapping[str, Any]) -> dict[str, float | None]:
    """Facts by metric name from `TieredCache.stats`; {} where nothing could be prefetched."""
    prefetch = stats.get("prefetch")
    if prefetch is None:
        return {}
    names = ("prefetched", "used", "harmed", "precision", "saved_s", "tending_s")
    return {f"cache.prefetch.{name}": prefetch[name] for name in names}


def _tier(tier: L1 | L2, kinds: Collection[CacheType]) -> dict[str, Any]:
    counters = tier.counters
    by_type = {kind.value: asdict(counters[kind]) for kind in kinds}
    totals = _summed(by_type.values()) or asdict(Counters())
    for kind in kinds:
        by_type[kind.value]["capacity_bytes"] = tier.capacity_of(kind)
    # Reopened entries of types that are off still take room until they are evicted or expire.
    totals |= {"bytes": tier.num_bytes, "entries": len(tier)}
    return {
        "capacity_bytes": tier.capacity_bytes,
        **totals,
        "utilisation": tier.num_bytes / tier.capacity_bytes,
        "hit_rate": _ratio(totals["hits"], totals["hits"] + totals["misses"]),
        "evicted_per_stored": _ratio(totals["evicted"], totals["stored"]),
        "hits_per_stored": _ratio(totals["hits"], totals["stored"]),
        "by_type": by_type,
    }


def _type(l1: L1, l2: L2 | None, kind: CacheType, computed_bytes: int) -> dict[str, Any]:
    first = l1.counters_of(kind)
    second = Counters() if l2 is None else l2.counters_of(kind)
    lookups = first.hits + first.misses
    hits = first.hits + second.hits
    return {
        "lookups": lookups,
        "hits": hits,
        "l1_hits": first.hits,
        "l2_hits": second.hits,
        "misses": lookups - hits,
        "hit_bytes": first.hit_bytes + second.hit_bytes,
        "computed_bytes": computed_bytes,
        "stale_hits": first.stale_hits + second.stale_hits,
        "saved_s": first.saved_s + second.saved_s,
    }


def _rates(counts: dict[str, Any]) -> dict[str, float | None]:
    """`byte_hit_rate`: of the bytes that were served or computed, those that were served."""
    return {
        "hit_rate": _ratio(counts["hits"], counts["lookups"]),
        "l1_hit_rate": _ratio(counts["l1_hits"], counts["lookups"]),
        "l2_hit_rate": _ratio(counts["l2_hits"], counts["lookups"]),
        "byte_hit_rate": _ratio(
            counts["hit_bytes"], counts["hit_bytes"] + counts["computed_bytes"]
        ),
    }


def _summed(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
