"""How many hits on SSD a prefetch turns into hits in RAM, by two forecasts, and what it costs.

Real tiers under LRU, 5 % of the keys in RAM and 20 % on SSD, values of 1 KB; the cache is tended
after every access. `followers` forecasts by what followed a key before (as shipped, and without its
switch), `rates` brings back whichever of 64 random keys on SSD has the highest decayed rate of
access. Counts are deterministic; seconds are not, and want a quiet machine.

    python experiments/005-caching/prefetch.py --traces ../shared/data/traces
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import OmegaConf
from policies_streams import Keys, streams

from capibench.cache.keys import KEY_BYTES, CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.prefetching.prefetch import Followers
from capibench.cache.prefetching.prefetch_switch import PrefetchSwitch, SwitchRule
from capibench.cache.prefetching.prefetcher import Prefetcher
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1, OVERHEAD_BYTES
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.tiered import TieredCache
from capibench.config import build, conf_dir

KIND = CacheType.QUERY_RESULT
VALUE = bytes(1000)
STREAMS = ("zipf_1.0", "reranked_20k", "scans", "recency", "loop_mix", "phases", "mooncake",
           "ragpulse_passages", "ragpulse_all")  # fmt: skip
_SAMPLE = 64
_HALF_LIVES = ((1.0, 0.9), (16.0, 0.1))  # turnovers of RAM, and weights: those of `predictive`


class Always(SwitchRule):
    """Never off."""

    def pays(self, good: int, total: int) -> bool:
        return True


class Rates:
    """The SSD-only key with the highest two-timescale decayed rate, of a random sample."""

    def __init__(self, l1: L1, l2: L2, num_slots: int, rng: np.random.Generator) -> None:
        self._l1, self._l2, self._num_slots, self._rng = l1, l2, num_slots, rng
        self._now = 0
        self._counts: dict[bytes, tuple[int, list[float]]] = {}
        self._keys: list[bytes] = []

    def accessed(self, kind: CacheType, key: bytes) -> None:
        self._now += 1
        if key not in self._counts:
            self._keys.append(key)
            self._counts[key] = (self._now, [1.0] * len(_HALF_LIVES))
        else:
            self._counts[key] = (self._now, [1.0 + count for count in self._decayed(key)])

    def expected(self, key: bytes) -> list[bytes]:
        drawn = self._rng.integers(len(self._keys), size=_SAMPLE).tolist()
        sample = (self._keys[place] for place in drawn)
        on_ssd = [key for key in sample if key not in self._l1 and key in self._l2]
        return [max(on_ssd, key=self._rate)] if on_ssd else []

    def _decayed(self, key: bytes) -> list[float]:
        at, counts = self._counts[key]
        turnovers = (self._now - at) / self._num_slots
        return [
            count * 0.5 ** (turnovers / half)
            for count, (half, _) in zip(counts, _HALF_LIVES, strict=True)
        ]

    def _rate(self, key: bytes) -> float:
        counts = self._decayed(key)
        return sum(w * count for count, (_, w) in zip(counts, _HALF_LIVES, strict=True))


@dataclass
class ByRates(Followers):
    """The same machinery with the other forecast."""

    rates: Rates

    def prefetcher(self) -> Prefetcher:
        return Prefetcher(cast(Any, self.rates), 4, PrefetchSwitch(self.rule))


def shipped() -> Followers:
    """What `cache/prefetch=followers` is."""
    path = conf_dir() / "cache" / "prefetch" / "followers.yaml"
    settings = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))
    return cast(Followers, build(settings, "cache.prefetch"))


def replay(keys: Keys, prefetch: str, folder: Path) -> dict[str, Any]:
    """The statistics of the cache after all accesses."""
    num_keys = len(np.unique(keys))
    num_slots = max(1, num_keys * 5 // 100)
    slot_bytes = KEY_BYTES + len(encode(VALUE)) + OVERHEAD_BYTES
    l1 = L1(Lru(), num_slots * slot_bytes)
    l2 = L2(Lru(), 4 * num_slots * slot_bytes, folder)
    choice = shipped()
    always = replace(choice, rule=Always(**vars(choice.rule)))
    rates = Rates(l1, l2, num_slots, np.random.default_rng(1))
    choices = {
        "none": None,
        "shipped": choice,
        "followers": always,
        "rates": ByRates(**vars(always), rates=rates),
    }
    cache = TieredCache(l1, l2, {KIND: 1e9}, prefetch=choices[prefetch])
    digests = {number: cache_key(KIND, str(number)) for number in np.unique(keys).tolist()}
    for step, number in enumerate(keys.tolist()):
        now = float(step)
        if not cache.lookup(KIND, digests[number], now).is_hit:
            cache.put(KIND, digests[number], VALUE, 1.0, now)
        cache.tend(now)
    stats = cache.stats()
    cache.close()
    return stats


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--traces", type=Path, help="folder with mooncake_fast25 and ragpulse")
    parser.add_argument("--only", nargs="*", default=list(STREAMS), metavar="STREAM")
    parser.add_argument("--accesses", type=int, default=40_000, help="the first of each stream")
    options = parser.parse_args(arguments)
    names = "without: L1 + L2 | rates | followers | shipped | mode, trials | saved, tending, read"
    print(f"| stream | {names} |")
    print("|---|---:|---:|---:|---:|---|---:|")
    for name, keys in streams(options.seed, options.traces):
        if name not in options.only:
            continue
        keys = keys[: options.accesses]
        found = {}
        for prefetch in ("none", "rates", "followers", "shipped"):
            with tempfile.TemporaryDirectory() as folder:
                found[prefetch] = replay(keys, prefetch, Path(folder))
        print(f"| {name} | {' | '.join(_cells(found))} |", flush=True)


def _cells(found: dict[str, dict[str, Any]]) -> list[str]:
    """L1 points gained (precision, harmed per 100 prefetches) for each way; then how it went."""
    without = found["none"]["overall"]
    cells = [f"{100 * without['l1_hit_rate']:.1f} + {100 * without['l2_hit_rate']:.1f}"]
    for name in ("rates", "followers", "shipped"):
        figures = found[name]["prefetch"]
        gained = 100 * (found[name]["overall"]["l1_hit_rate"] - without["l1_hit_rate"])
        made = figures["prefetched"]
        precision = "-" if figures["precision"] is None else f"{100 * figures['precision']:.0f}"
        harmed = f"{100 * figures['harmed'] / made:.0f}" if made else "-"
        cells.append(f"{gained:+.2f} ({made:,}: {precision} %, {harmed} %)")
    shipped_figures = found["shipped"]["prefetch"]
    modes = [switched["mode"] for switched in shipped_figures["switched"]]
    cells.append(f"{shipped_figures['mode']}, {modes.count('trial')}")
    made = shipped_figures["prefetched"]
    read_us = f"{1e6 * shipped_figures['reading_s'] / made:.1f} us" if made else "-"
    cells.append(
        f"{shipped_figures['saved_s']:.2f} s, {shipped_figures['tending_s']:.2f} s, {read_us}"
    )
    return cells


if __name__ == "__main__":
    main(sys.argv[1:])
