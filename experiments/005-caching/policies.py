"""Whether `adaptive` and `predictive` keep what they promise, against every fixed policy.

    near    adaptive under the best fixed policy, predictive above LRU, on every stream and size
    shift   hit rate in each of eight capacities of requests after all popularity has changed,
            against the best fixed policy in the same stretch after the same change

The best is found afterwards, for each stream and size (and stretch) anew: nobody can choose it
before. Policies are those of `conf/cache`, as shipped. Hit rates are deterministic, so that it does
not matter what else the machine does.

    python experiments/005-caching/policies.py near --seed 3 --traces ../shared/data/traces
    python experiments/005-caching/policies.py shift --seeds 7 8 9
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from policies_streams import NUM_KEYS, Keys, shifts, streams

from capibench.cache.policy import EvictionPolicy
from capibench.cache.policy_parts.simulated import SimulatedTier
from capibench.cache.replay.choices import load_policies

FIXED = ("lru", "lfu", "arc", "s3_fifo", "sieve", "w_tinylfu")
_NUM_BEFORE = 60_000  # accesses before the change
_NUM_STRETCHES = 8  # of one capacity each, after it


def hits(policy: EvictionPolicy, keys: Keys, capacity: int) -> npt.NDArray[np.bool_]:
    """Which accesses hit, with entries of size one; the empty cache's misses count too."""
    tier = SimulatedTier(policy, capacity)
    names = [b"%d" % key for key in keys.tolist()]
    times = map(float, range(len(names)))
    found = map(tier.access, names, repeat(1), repeat(1.0), times, repeat(math.inf))
    return np.frombuffer(bytes(found), dtype=np.bool_)


def near(seed: int, sizes: Sequence[int], traces: Path | None, only: Sequence[str]) -> None:
    """A line per stream and size: percent of hits and points of difference, of all accesses and,
    after the stroke, without the first quarter of them, in which caches fill and experts learn."""
    policies = load_policies((*FIXED, "adaptive", "predictive"), None, ())
    print("| stream | size | lru | best fixed | adaptive - best | predictive - lru | - best |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for name, keys in streams(seed, traces):
        if only and name not in only:
            continue
        for size in sizes:
            capacity = max(1, len(np.unique(keys)) * size // 100)
            found = {p: hits(policy, keys, capacity) for p, policy in policies.items()}
            parts = [_differences(found, since) for since in (0, len(keys) // 4)]
            cells = (" / ".join(cell) for cell in zip(*parts, strict=True))
            print(f"| {name} | {size} % | {' | '.join(cells)} |", flush=True)


def _differences(found: dict[str, npt.NDArray[np.bool_]], since: int) -> tuple[str, ...]:
    """The cells of a line, of the accesses from `since` on."""
    percent = {name: 100 * float(flags[since:].mean()) for name, flags in found.items()}
    best = max(FIXED, key=percent.__getitem__)
    return (
        f"{percent['lru']:.2f}",
        f"{best} {percent[best]:.2f}",
        f"{percent['adaptive'] - percent[best]:+.2f}",
        f"{percent['predictive'] - percent['lru']:+.2f}",
        f"{percent['predictive'] - percent[best]:+.2f}",
    )


def shift(seeds: Sequence[int], sizes: Sequence[int]) -> None:
    """A line per law and size: points under the best fixed policy by stretch, mean of seeds."""
    policies = load_policies((*FIXED, "adaptive"), None, ())
    numbers = " | ".join(str(stretch + 1) for stretch in range(_NUM_STRETCHES))
    print(f"| law | size | best in stretch 6 | {numbers} |")
    print("|---|---:|---|" + "---:|" * _NUM_STRETCHES)
    for size in sizes:
        capacity = NUM_KEYS * size // 100
        found: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
        for seed in seeds:
            for law, before, after in shifts(seed, _NUM_BEFORE, _NUM_STRETCHES * capacity):
                of_law = found.setdefault(law, {p: np.zeros(_NUM_STRETCHES) for p in policies})
                for name, policy in policies.items():
                    all_hits = hits(policy, np.concatenate([before, after]), capacity)
                    stretches = all_hits[_NUM_BEFORE:].reshape(_NUM_STRETCHES, capacity)
                    of_law[name] += 100 * stretches.mean(axis=1) / len(seeds)
        for law, of_law in found.items():
            best = np.max([of_law[name] for name in FIXED], axis=0)
            sixth = FIXED[int(np.argmax([of_law[name][5] for name in FIXED]))]
            under = " | ".join(f"{points:+.2f}" for points in of_law["adaptive"] - best)
            print(f"| {law} | {size} % | {sixth} {best[5]:.2f} | {under} |", flush=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    of_near, of_shift = modes.add_parser("near"), modes.add_parser("shift")
    of_near.add_argument("--seed", type=int, default=3)
    of_near.add_argument("--traces", type=Path, help="folder with mooncake_fast25 and ragpulse")
    of_near.add_argument("--only", nargs="*", default=[], metavar="STREAM")
    of_shift.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    for mode, sizes in ((of_near, [5, 10, 20]), (of_shift, [2, 5, 10, 20])):
        mode.add_argument("--sizes", type=int, nargs="+", default=sizes, help="percent of the keys")
    options = parser.parse_args(arguments)
    if options.mode == "near":
        near(options.seed, options.sizes, options.traces, options.only)
    else:
        shift(options.seeds, options.sizes)


if __name__ == "__main__":
    main(sys.argv[1:])
