"""How fast the cache's tiers are, and how much slower 100,000 entries are than 1,000, beside other
libraries in the same process and the same rounds. Nothing else should run:

    python experiments/005-caching/speed.py --out reports/cache-speed.json

Libraries that are not installed are left out (`pip install cachetools cachebox diskcache`, into an
environment of its own). The question behind the growth is whose it is: an algorithm's that looks at
more, or the memory's, which the plain dict shows as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.library.aggressive_cache import AggressiveCache
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.rocks import RocksStore
from capibench.cache.tiers.tiered import TieredCache

KIND = CacheType.QUERY_RESULT
TTL_S = 3600.0
CAPACITY_BYTES = 1 << 30
VALUE_BYTES = 1024
LOADS = ("uniform", "zipf")
MAX_SINGLE_GETS = 10_000  # per round and store
WORDS = Path(argparse.__file__).read_text(encoding="ascii").split(" ")


@dataclass(frozen=True)
class Subject:
    """A filled store: how one key is asked for, and what the questions look like."""

    tier: str  # "RAM" or "SSD"
    name: str
    get: Callable[[Any], Any]
    asked: dict[str, list[Any]]  # by load: one key per get, of the kind that `get` takes
    set_per_s: float


@dataclass(frozen=True)
class Row:
    """What was measured of one store; microseconds, over rounds."""

    tier: str
    name: str
    load: str
    num_entries: int
    get_per_s: float  # median over rounds, nothing but the calls in the loop
    get_us: float
    get_us_low: float  # fastest and slowest round
    get_us_high: float
    p50_us: float  # of calls timed one by one, which costs some 0.1 us each
    p99_us: float
    p999_us: float  # every 256th hit of the RAM tier settles the hits since
    set_per_s: float


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--gets", type=int, default=100_000, help="per round, of the RAM stores")
    parser.add_argument("--disk-gets", type=int, default=20_000, help="per round, SSD stores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="stores whose name contains this, alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for num_entries in options.entries:
        rng = np.random.default_rng(options.seed)
        wanted = {load: _wanted(load, num_entries, options.gets, rng) for load in LOADS}
        with (
            tempfile.TemporaryDirectory() as folder,
            _subjects(
                num_entries, wanted, Path(folder), options.disk_gets, options.only, rng
            ) as subjects,
        ):
            rows += _measured(subjects, num_entries, options.rounds)
    _print(rows, options.entries)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _wanted(load: str, num_entries: int, num_gets: int, rng: np.random.Generator) -> list[int]:
    """Which entries are asked for, in order; all equally, or by Zipf's law with exponent 1."""
    weights = np.ones(num_entries) if load == "uniform" else 1 / np.arange(1, num_entries + 1)
    chosen = rng.choice(num_entries, num_gets, p=weights / weights.sum())
    places: list[int] = rng.permutation(num_entries)[chosen].tolist()
    return places


def _measured(subjects: list[Subject], num_entries: int, num_rounds: int) -> list[Row]:
    """The stores take turns in every round."""
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    singles: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(num_rounds):
        for load in LOADS:
            for subject in subjects:
                get, asked = subject.get, subject.asked[load]
                begin_s = perf_counter()
                for key in asked:
                    get(key)
                means[load, subject.name].append((perf_counter() - begin_s) / len(asked))
                add = singles[load, subject.name].append
                for key in asked[:MAX_SINGLE_GETS]:
                    begin_s = perf_counter()
                    get(key)
                    add(perf_counter() - begin_s)
    return [
        _row(subject, load, num_entries, (means[load, subject.name], singles[load, subject.name]))
        for load in LOADS
        for subject in subjects
    ]


def _row(
    subject: Subject, load: str, num_entries: int, times: tuple[list[float], list[float]]
) -> Row:
    means_us, singles_us = (1e6 * np.asarray(seconds) for seconds in times)
    return Row(
        tier=subject.tier,
        name=subject.name,
        load=load,
        num_entries=num_entries,
        get_per_s=float(1e6 / np.median(means_us)),
        get_us=float(np.median(means_us)),
        get_us_low=float(means_us.min()),
        get_us_high=float(means_us.max()),
        p50_us=float(np.percentile(singles_us, 50)),
        p99_us=float(np.percentile(singles_us, 99)),
        p999_us=float(np.percentile(singles_us, 99.9)),
        set_per_s=subject.set_per_s,
    )


@contextmanager
def _subjects(
    num_entries: int,
    wanted: dict[str, list[int]],
    folder: Path,
    disk_gets: int,
    only: str,
    rng: np.random.Generator,
) -> Iterator[list[Subject]]:
    """All stores, filled with the same values."""
    names = [f"question {number}" for number in range(num_entries)]
    # Other objects than were stored, as in a program.
    asked = {load: [f"question {number}" for number in those] for load, those in wanted.items()}
    digests = [cache_key(KIND, name) for name in names]
    asked_digests = {
        load: [cache_key(KIND, name) for name in those] for load, those in asked.items()
    }
    texts = [_text(rng) for _ in range(num_entries)]
    values = [text.encode("ascii") for text in texts]
    subjects, closers = [], []

    def fill(
        tier: str, name: str, keys: list[Any], those: Any, of: list[Any], put: Any, get: Any
    ) -> None:
        if only not in name:
            return
        begin_s = perf_counter()
        for key, value in zip(keys, of, strict=True):
            put(key, value)
        took_s = perf_counter() - begin_s
        most = disk_gets if tier == "SSD" else None
        some = {load: wanted_keys[:most] for load, wanted_keys in those.items()}
        subjects.append(Subject(tier, name, get, some, num_entries / took_s))

    kept: dict[str, bytes] = {}
    fill("RAM", "dict", names, asked, values, kept.__setitem__, kept.get)
    fill("RAM", "dict, value copied", names, asked, values, kept.__setitem__,
         lambda name: kept[name][1:])  # fmt: skip
    tiers = TieredCache(L1(Lru(), CAPACITY_BYTES), None, {KIND: TTL_S})
    fill("RAM", "CapiBench tiers, lru", digests, asked_digests, values,
         lambda key, value: tiers.put(KIND, key, value, 1.0, 0.0),
         lambda key: tiers.lookup(KIND, key, 1.0))  # fmt: skip
    cache = AggressiveCache(CAPACITY_BYTES >> 20, None, strategy="lru")  # type: ignore[arg-type]
    closers.append(cache.shutdown)
    fill("RAM", "AggressiveCache, lru", names, asked, values, cache.set, cache.get)
    for name, library in _ram_libraries(num_entries).items():
        fill("RAM", name, names, asked, values, *library)

    zstd = Compression(level=1, min_saving=0.1, dictionary_kib=16, num_samples=256)
    for name, compression in (("CapiBench L2", None), ("CapiBench L2, zstd", zstd)):
        disk = L2(Lru(), CAPACITY_BYTES, folder / name, 0.0, compression=compression)
        closers.append(disk.close)
        fill("SSD", name, digests, asked_digests, [encode(text) for text in texts],
             lambda key, record, disk=disk: disk.put(
                 key, Entry(KIND, 1.0, TTL_S, TTL_S), record, 0.0
             ),
             lambda key, disk=disk: disk.get(KIND, key, 1.0))  # fmt: skip
    store = RocksStore(folder / "rocksdb")
    closers.append(store.close)
    fill("SSD", "RocksDB alone", digests, asked_digests, values, store.write, store.read)
    if find_spec("diskcache"):
        import diskcache  # may be absent

        for policy in ("least-recently-stored", "least-recently-used"):
            other = diskcache.Cache(
                str(folder / policy), eviction_policy=policy, size_limit=CAPACITY_BYTES
            )
            closers.append(other.close)

            def put(key: bytes, value: bytes, other: Any = other) -> None:
                other.set(key, value, TTL_S)

            fill("SSD", f"diskcache, {policy}", digests, asked_digests, values, put, other.get)
    try:
        yield subjects
    finally:
        for close in closers:
            close()


def _ram_libraries(num_entries: int) -> dict[str, tuple[Any, Any]]:
    """How each library's stores are set and asked; none of them counts bytes or copies values."""
    libraries: dict[str, tuple[Any, Any]] = {}
    if find_spec("cachetools"):
        import cachetools  # may be absent

        lock = threading.Lock()  # it has none of its own

        def locked(cache: Any) -> tuple[Any, Any]:
            def get(name: str) -> Any:
                with lock:
                    return cache.get(name)

            return cache.__setitem__, get

        libraries["cachetools LRUCache, lock"] = locked(cachetools.LRUCache(num_entries))
        libraries["cachetools TTLCache, lock"] = locked(cachetools.TTLCache(num_entries, TTL_S))
    if find_spec("cachebox"):
        import cachebox  # may be absent

        for kind, made in (
            ("LRUCache", cachebox.LRUCache(num_entries)),
            ("TTLCache", cachebox.TTLCache(num_entries, TTL_S)),
        ):
            libraries[f"cachebox {kind}"] = (made.__setitem__, made.get)
    return libraries


def _text(rng: np.random.Generator) -> str:
    """1 KB of words in an order of its own: as compressible as prose."""
    begin = int(rng.integers(len(WORDS) - 400))
    noise = hashlib.blake2b(rng.bytes(8)).hexdigest()
    return (noise + " ".join(WORDS[begin : begin + 400]) * 2)[:VALUE_BYTES].ljust(VALUE_BYTES)


def _print(rows: list[Row], entries: list[int]) -> None:
    least, most = min(entries), max(entries)
    out = sys.stdout.write
    out(
        f"| load | tier | store | get/s at {least:,} | at {most:,} | "
        f"p50 / p99 / p99.9 at {least:,} (us) | at {most:,} | us more | growth | "
        f"set/s at {most:,} |\n"
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    small = {(row.load, row.name): row for row in rows if row.num_entries == least}
    for row in rows:
        if row.num_entries == most:
            first = small[row.load, row.name]
            out(
                f"| {row.load} | {row.tier} | {row.name} | {first.get_per_s:,.0f} | "
                f"{row.get_per_s:,.0f} | "
                f"{first.p50_us:.2f} / {first.p99_us:.2f} / {first.p999_us:.1f} | "
                f"{row.p50_us:.2f} / {row.p99_us:.2f} / {row.p999_us:.1f} | "
                f"{row.get_us - first.get_us:.2f} | "
                f"{row.get_us / first.get_us:.2f} [{row.get_us_low / first.get_us_high:.2f}, "
                f"{row.get_us_high / first.get_us_low:.2f}] | {row.set_per_s:,.0f} |\n"
            )


if __name__ == "__main__":
    main()
