"""The ceilings that a run records beside its hit rate."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from capibench.cache.ceiling import ceiling_facts
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.l1 import L1, OVERHEAD_BYTES
from capibench.cache.tiers.tiered import TieredCache

RESULT = CacheType.QUERY_RESULT


def rows(asked: str, num_warmup: int, result_cache: str = "miss") -> pd.DataFrame:
    """One request per letter, sent one second after another; listed backwards."""
    frame = pd.DataFrame(
        {
            "question_id": list(asked),
            "max_new_tokens": 8,
            "sent_s": np.arange(len(asked), dtype=float),
            "phase": ["warmup"] * num_warmup + ["measure"] * (len(asked) - num_warmup),
            "result_cache": result_cache,
        }
    )
    return frame[::-1]


def stats(num_entries: int, num_stored: int = 4) -> dict[str, Any]:
    """Of a cache with room for so many answers."""
    l1 = L1(Lru(), 1200 * num_entries)
    cache = TieredCache(l1, None, {RESULT: 100.0})
    overhead = 16 + 5 + OVERHEAD_BYTES
    for number in range(num_stored):
        cache.put(RESULT, cache_key(RESULT, str(number)), bytes(1200 - overhead), 0.25, 0.0)
        cache.lookup(RESULT, cache_key(RESULT, str(number)), 1.0)
    return cache.stats()


def best_hits(asked: str, room: int, since: int) -> int:
    """Every way of keeping at most `room` letters after each request, tried out."""
    best = {frozenset[str](): 0}  # kept → most hits so far
    for place, letter in enumerate(asked):
        then: dict[frozenset[str], int] = {}
        for kept, hits in best.items():
            gained = hits + (letter in kept and place >= since)
            available = kept | {letter}
            for size in range(min(room, len(available)) + 1):
                for chosen in combinations(sorted(available), size):
                    then[frozenset(chosen)] = max(then.get(frozenset(chosen), 0), gained)
        best = then
    return max(best.values())


@pytest.mark.parametrize("room", [1, 2, 3])
def test_no_choice_of_what_to_keep_hits_more(room: int) -> None:
    asked = "abcabdaecabbcdea"
    facts = ceiling_facts(rows(asked, num_warmup=3), stats(room))
    assert facts["cache.result.belady_hit_rate"] == best_hits(asked, room, 3) / 13
    assert facts["cache.result.infinite_hit_rate"] == 11 / 13  # all but the first d and the first e


def test_seconds_are_those_of_the_entries_that_were_served() -> None:
    assert ceiling_facts(rows("ab", 0), stats(9))["cache.saved_s"] == pytest.approx(4 * 0.25)


def test_other_lengths_of_answer_are_other_keys() -> None:
    frame = rows("aa", 0).assign(max_new_tokens=[8, 9])
    assert ceiling_facts(frame, stats(9))["cache.result.infinite_hit_rate"] == 0.0


def test_what_is_not_known_is_not_made_up() -> None:
    assert ceiling_facts(rows("aa", 0, "off"), stats(2)) == {}
    assert ceiling_facts(rows("aa", 0), {}) == {}
    emptied = stats(2)
    emptied["tiers"]["l1"]["by_type"]["query_result"] |= {"entries": 0, "bytes": 0}
    assert ceiling_facts(rows("aa", 0), emptied)["cache.result.belady_hit_rate"] is None


def test_hits_that_do_not_count_are_not_preferred_to_those_that_do() -> None:
    """During the warm-up `a` waits for one hit that counts while `b` and `c` come often."""
    facts = ceiling_facts(rows("abcbcbcbca", num_warmup=9), stats(1))
    assert facts["cache.result.belady_hit_rate"] == 1.0
