"""The counters of a cache under the names that `AggressiveCache.get_cache_stats` promises."""

from __future__ import annotations

from typing import Any


def public_stats(stats: dict[str, Any]) -> dict[str, Any]:
    """From `TieredCache.stats`: overall, l1_cache, l2_cache (None without one), by_type, and
    prefetch (None where it is off; see `promotions.Promotions.stats`).

    `overall.l1_hit_rate` and `l2_hit_rate` are shares of all requests and add up to
    `overall_hit_rate`; a tier's own `hit_rate` is of the requests that came to it. Times are of
    the look-ups, decoding included; percentiles within 1.6 %.
    """
    counts, times = stats["overall"], stats["access_times"]
    tiers = stats["tiers"]
    l1, l2 = tiers["l1"], tiers.get("l2")
    return {
        "overall": {
            "total_requests": counts["lookups"],
            "total_hits": counts["hits"],
            "total_misses": counts["misses"],
            "overall_hit_rate": counts["hit_rate"],
            "l1_hit_rate": counts["l1_hit_rate"],
            "l2_hit_rate": counts["l2_hit_rate"],
            "byte_hit_rate": counts["byte_hit_rate"],
            "seconds_saved": counts["saved_s"],
            "stale_hits": counts["stale_hits"],
            "outdated_results": stats["outdated_results"],
            "average_access_time_ms": times["overall"]["mean_ms"],
            "access_time": times["overall"],
            "miss_access_time": times["miss"],
        },
        "l1_cache": {**l1, "access_time": times["l1"]},
        "l2_cache": None if l2 is None else {**l2, "access_time": times["l2"]},
        "by_type": stats["types"],
        "prefetch": stats["prefetch"],
    }
