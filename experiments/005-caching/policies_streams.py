"""Streams of keys on which cache policies differ, and streams in which all popularity changes once.

The made ones have 20,000 keys (fewer where that is the point) and 200,000 accesses; the recorded
ones are read from a folder with the Mooncake and RAGPulse traces, when there is one. Everything is
drawn from one seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capibench.load.popularity import draw, zipf_shares

Keys = npt.NDArray[np.int64]
NUM_KEYS, NUM_ACCESSES = 20_000, 200_000
_ELSEWHERE = 1_000_000  # first key of what no popular key is


def _zipf(exponent: float, rng: np.random.Generator, num: int = NUM_ACCESSES) -> Keys:
    """Which rank is asked for."""
    return draw(zipf_shares(NUM_KEYS, exponent), num, rng)


def _reranked(every: int) -> Callable[[np.random.Generator], Keys]:
    """Zipf 1.0 whose whole ranking is drawn anew."""

    def made(rng: np.random.Generator) -> Keys:
        parts = [
            rng.permutation(NUM_KEYS)[_zipf(1.0, rng, every)] for _ in range(NUM_ACCESSES // every)
        ]
        return np.concatenate(parts)

    return made


def _drift(rng: np.random.Generator) -> Keys:
    """Every twenty accesses a new key becomes the most popular one, and all others less so."""
    return NUM_KEYS + np.arange(NUM_ACCESSES) // 20 - _zipf(1.0, rng)


def _churn(rng: np.random.Generator) -> Keys:
    """Every fifty accesses the key of one popular rank is replaced by a new one."""
    ranking = np.arange(NUM_KEYS)
    ranks, replaced = _zipf(1.0, rng), _zipf(1.0, rng, NUM_ACCESSES // 50)
    keys = np.empty(NUM_ACCESSES, dtype=np.int64)
    for place, rank in enumerate(replaced.tolist()):
        stretch = slice(50 * place, 50 * place + 50)
        keys[stretch] = ranking[ranks[stretch]]
        ranking[rank] = _ELSEWHERE + place
    return keys


def _scans(rng: np.random.Generator) -> Keys:
    """Zipf 1.0, and every 10,000 accesses 3,000 keys that are asked for once and never again."""
    place = np.arange(NUM_ACCESSES)
    return np.where(place % 10_000 < 3_000, _ELSEWHERE + place, _zipf(1.0, rng))


def _singles(rng: np.random.Generator) -> Keys:
    """Zipf 0.9, and every other access to a key that is never asked for again."""
    place = np.arange(NUM_ACCESSES)
    return np.where(rng.random(NUM_ACCESSES) < 0.5, _ELSEWHERE + place, _zipf(0.9, rng))


def _recency(rng: np.random.Generator) -> Keys:
    """A front that moves one key every four accesses; what is near behind it is asked for."""
    return NUM_KEYS + np.arange(NUM_ACCESSES) // 4 - _zipf(1.0, rng)


def _loop_mix(rng: np.random.Generator) -> Keys:
    """Half Zipf 0.9, half a loop over 5,000 other keys."""
    place = np.arange(NUM_ACCESSES)
    return np.where(place % 2 == 0, _zipf(0.9, rng), _ELSEWHERE + place // 2 % 5_000)


def _pairs(rng: np.random.Generator) -> Keys:
    """Every key is asked for again within 200 accesses, and hardly ever after that."""
    keys = rng.integers(_ELSEWHERE, 2 * _ELSEWHERE, NUM_ACCESSES)
    later = np.arange(0, NUM_ACCESSES - 200, 2)
    keys[later + 1 + 2 * rng.integers(0, 99, len(later))] = keys[later]
    return np.where(rng.random(NUM_ACCESSES) < 0.4, _zipf(1.0, rng), keys)


def _phases(rng: np.random.Generator) -> Keys:
    """Popularity, a moving front and a loop mix, 25,000 accesses each, in turn."""
    kinds = (_zipf(0.9, rng), _recency(rng), _loop_mix(rng))
    which = np.arange(NUM_ACCESSES) // 25_000 % 3
    return np.choose(which, kinds)


def _depths(rng: np.random.Generator) -> Keys:
    """Every access takes what is at a depth of the LRU stack that is drawn with a heavy tail."""
    stack = list(range(NUM_KEYS))
    keys = []
    for depth in np.minimum(rng.pareto(0.7, NUM_ACCESSES) * 20, NUM_KEYS - 1).astype(int).tolist():
        key = stack.pop(-1 - depth)
        stack.append(key)
        keys.append(key)
    return np.asarray(keys)


_MADE: dict[str, Callable[[np.random.Generator], Keys]] = {
    "zipf_0.7": lambda rng: _zipf(0.7, rng),
    "zipf_1.0": lambda rng: _zipf(1.0, rng),
    "zipf_1.2": lambda rng: _zipf(1.2, rng),
    "reranked_50k": _reranked(50_000),
    "reranked_20k": _reranked(20_000),
    "drift": _drift,
    "churn": _churn,
    "scans": _scans,
    "singles": _singles,
    "recency": _recency,
    "loop_mix": _loop_mix,
    "pairs": _pairs,
    "phases": _phases,
    "depths": _depths,
}


def streams(seed: int, traces: Path | None) -> Iterator[tuple[str, Keys]]:
    """Name and keys of each; the recorded ones when the folder `traces` is given."""
    for name, made in _MADE.items():
        yield name, made(np.random.default_rng([seed, *name.encode()]))
    if traces is not None:
        yield "mooncake", _mooncake(traces / "mooncake_fast25" / "conversation_trace.jsonl")
        ragpulse = traces / "ragpulse" / "0_trace.jsonl"
        yield "ragpulse_passages", _ragpulse(ragpulse, ("passages_ids",))
        parts = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
        yield "ragpulse_all", _ragpulse(ragpulse, parts)


def _mooncake(path: Path) -> Keys:
    """Prefix blocks of conversations, in order."""
    rows = [
        json.loads(line)["hash_ids"]
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])


def _ragpulse(path: Path, parts: tuple[str, ...]) -> Keys:
    """What the prompts of a week were made of; the file is not in the order of time."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    rows.sort(key=lambda row: float(row["timestamp"]))
    return np.asarray([key for row in rows for part in parts for key in row["hash_ids"][part]])


def _hot_set(rng: np.random.Generator, num: int) -> Keys:
    """Nine of ten accesses to the first twentieth of the keys, evenly."""
    hot = rng.integers(0, NUM_KEYS // 20, num)
    return np.where(rng.random(num) < 0.9, hot, rng.integers(0, NUM_KEYS, num))


_SHIFTING: dict[str, Callable[[np.random.Generator, int], Keys]] = {
    "zipf_0.8": lambda rng, num: _zipf(0.8, rng, num),
    "zipf_1.0": lambda rng, num: _zipf(1.0, rng, num),
    "zipf_1.2": lambda rng, num: _zipf(1.2, rng, num),
    "hot_set": _hot_set,
}


def shifts(seed: int, num_before: int, num_after: int) -> Iterator[tuple[str, Keys, Keys]]:
    """Name and keys before and after a shift: the same law over a new ranking of the same keys."""
    for name, made in _SHIFTING.items():
        rng = np.random.default_rng([seed, *name.encode()])
        before = rng.permutation(NUM_KEYS)[made(rng, num_before)]
        yield name, before, rng.permutation(NUM_KEYS)[made(rng, num_after)]
