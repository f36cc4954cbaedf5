"""What the best cache could have hit in a run, from the run's own requests: a hit rate says little
about a cache without what was there to be hit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from capibench.cache.keys import CacheType
from capibench.cache.replay.bounds import belady_hits, infinite_hits
from capibench.cache.replay.trace import make_trace
from capibench.records import Phase


def ceiling_facts(rows: pd.DataFrame, stats: Mapping[str, Any]) -> dict[str, float | None]:
    """Facts by metric name, for look-ups of whole answers; {} for a run without any.

    `infinite`: never forgets. `belady`: knows the future, and which of its hits count, and holds as
    many answers as would fit into all tiers together, at their mean size: where answers differ in
    size, a cache that prefers short ones may hit more. Both store at the moment of asking, and
    nothing goes stale. Warm-up requests fill them and are not counted, as in the run's own hit
    rate; what is held of them when counting begins is what the counted ones need.

    Args:
        rows: all of the run, with `RECORD_COLUMNS`.
        stats: `tier_stats.cache_stats` of its cache; {} where there was none.
    """
    asked = rows[rows["result_cache"] != "off"].sort_values("sent_s", kind="stable")
    counted = (asked["phase"] == Phase.MEASURE.value).to_numpy()
    if not stats or not counted.any():
        return {}
    names = (asked["question_id"] + " " + asked["max_new_tokens"].astype(str)).tolist()
    trace = make_trace("run", names)
    facts: dict[str, float | None] = {
        "cache.saved_s": stats["overall"]["saved_s"],
        "cache.result.infinite_hit_rate": float(np.mean(infinite_hits(trace)[counted])),
    }
    num_entries = _room(stats["tiers"])
    belady = None
    if num_entries is not None:
        belady = float(np.mean(belady_hits(trace, num_entries, counted)[counted]))
    facts["cache.result.belady_hit_rate"] = belady
    return facts


def _room(tiers: Mapping[str, Any]) -> int | None:
    """How many answers of their mean size the tiers can hold; None where no answer was left to be
    measured."""
    num_entries = 0.0
    for tier in tiers.values():
        results = tier["by_type"].get(CacheType.QUERY_RESULT.value)
        if results is None or not results["stored"]:
            continue  # nothing ever had to go there
        if not results["entries"]:
            return None
        num_entries += results["capacity_bytes"] * results["entries"] / results["bytes"]
    return int(num_entries)
