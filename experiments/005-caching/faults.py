"""Faults in numbers too large for every test run: kills, damaged files, concurrent misses, and
changes in the middle of computations.

    python experiments/005-caching/faults.py kills --times 100
    python experiments/005-caching/faults.py damages --times 1000
    python experiments/005-caching/faults.py misses --times 100
    python experiments/005-caching/faults.py interleavings --times 10000

Each prints one JSON line and ends with 1 if a wrong value came back or a store did not open. The
tests do the same in smaller numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capibench.cache import AggressiveCache, CacheStrategy
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.tiered import TieredCache

KIND = CacheType.QUERY_RESULT
COMPRESSION = Compression(level=3, min_saving=0.1, dictionary_kib=4, num_samples=40)
NUM_KEYS = 50
NUM_OF_HISTORY = 120
TEXT = "some text that repeats itself " * 3
WORDS = Path(argparse.__file__).read_text(encoding="ascii").split(" ")


def key(number: int) -> bytes:
    return cache_key(KIND, str(number))


def opened(folder: Path, capacity_bytes: int = 1 << 22) -> L2:
    return L2(Lru(), capacity_bytes, folder, compression=COMPRESSION)


def write_until_killed(folder: Path, first: int) -> None:
    """Store, read, overwrite and remove without end; print each deed after it is done. A value
    names its own version."""
    store = opened(folder, 60_000)
    step = first
    while True:
        number = step * 7 % NUM_KEYS
        if step % 5 == 4:
            store.remove(key(number))
            deed = "removed"
        else:
            store.get(KIND, key(number), float(step))
            record = encode([number, step, TEXT])
            store.put(key(number), Entry(KIND, 1.0, 1e9 + step), record, float(step))
            deed = "stored"
        sys.stdout.write(f"{deed} {number} {step}\n")
        sys.stdout.flush()
        step += 1


def kills(times: int, seed: int) -> dict[str, int]:
    """kill -9 at a random deed; then every key holds its last acknowledged value, that of the one
    deed that could not be acknowledged, or nothing."""
    rng = np.random.default_rng(seed)
    latest: dict[int, tuple[str, int]] = {}
    counts = dict.fromkeys(("kills", "right", "misses", "wrong", "failed_opens"), 0)
    first = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(times):
            command = [sys.executable, __file__, "write", "--folder", name, "--first", str(first)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
                assert writer.stdout is not None
                deeds = [writer.stdout.readline() for _ in range(int(rng.integers(1, 400)))]
                writer.kill()
                deeds += [line for line in writer.stdout if line.endswith("\n")]
            for line in deeds:
                deed, number, step = line.split()
                latest[int(number)] = (deed, int(step))
            last_step = max(step for _, step in latest.values())
            store = opened(folder)
            counts["kills"] += 1
            counts["failed_opens"] += store.num_errors > 0
            for number, (deed, step) in latest.items():
                found = store.get(KIND, key(number), 0.0)
                if found is None:
                    counts["misses"] += 1
                    continue
                version = found.value[1]
                is_last = deed == "stored" and version == step
                is_right = found.value == [number, version, TEXT] and (
                    is_last or version == last_step + 1
                )
                counts["right" if is_right else "wrong"] += 1
                latest[number] = ("stored", version)
            store.close()
            first = last_step + 2
    return counts


class History:
    """A cache on SSD whose values name their version, and what is latest under each key."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self._folder = folder
        self._rng = rng
        self._now = 0.0
        self.latest: dict[int, str | None] = {}
        self.counts = dict.fromkeys(("stored", "overwritten", "removed", "evicted"), 0)
        self.open()

    def open(self) -> None:
        self.cache = tiers(self._folder)

    def go_on(self, num_deeds: int) -> None:
        """Store and overwrite, half of it in RAM alone; invalidate by key, glob and tag."""
        for _ in range(num_deeds):
            number, how = int(self._rng.integers(NUM_OF_HISTORY)), self._rng.integers(30)
            self._now += 1.0
            if how < 24:
                start = int(self._rng.integers(len(WORDS) - 30))
                text = " ".join([*WORDS[start : start + 30], f"{number} at {self._now}"])
                labels = {"name": f"q{number:02}", "tags": (f"t{number % 25}",)}
                self.cache.put(KIND, key(number), text, 1.0, self._now, **labels)
                self.counts["stored"] += 1
                self.counts["overwritten"] += self.latest.get(number) is not None
                self.latest[number] = text
                continue
            if how < 26:
                gone = [number]
                self.cache.remove(key(number))
            elif how < 28:
                gone = [number, number ^ 1]
                self.cache.remove_matching(f"q{number // 2 * 2:02}")
                self.cache.remove_matching(f"q{number // 2 * 2 + 1:02}")
            else:
                gone = [other for other in range(NUM_OF_HISTORY) if other % 25 == number % 25]
                self.cache.remove_tagged(f"t{number % 25}")
            self.counts["removed"] += sum(self.latest.get(each) is not None for each in gone)
            self.latest.update(dict.fromkeys(gone))

    def close(self) -> None:
        self.counts["evicted"] += self.cache.stats()["tiers"]["l2"]["evicted"]
        self.cache.close()


def tiers(folder: Path) -> TieredCache:
    return TieredCache(L1(Lru(), 12_000), opened(folder, 15_000), {KIND: 1e9})


def copied(whole: Path, copy: Path) -> Path:
    """As a killed process leaves it. By another process: whoever closes a file, even one that was
    only read, gives up its own locks on it."""
    subprocess.run(["cp", "-r", whole, copy], check=True)
    return copy


def histories(folder: Path, rng: np.random.Generator) -> dict[Path, dict[int, str | None]]:
    """Stores with a past, and what is latest under each key: one that was closed; one of a killed
    process, with a log; and one of a process that was killed while RocksDB wrote a sorted file,
    with two logs and the manifest of before."""
    past = History(folder / "open", rng)
    for _ in range(3):
        past.go_on(200)
        past.close()
        past.open()
    past.close()
    found = {copied(folder / "open", folder / "closed"): dict(past.latest)}
    past.open()
    past.go_on(200)
    flushing = copied(folder / "open", folder / "flushing")
    database = past.cache._l2._store._db  # type: ignore[union-attr]
    database.flush()
    past.go_on(200)
    killed = copied(folder / "open", folder / "killed")
    for log in killed.glob("*/*.log"):
        shutil.copy(log, next(flushing.glob("*")) / log.name)
    for ledger in killed.glob("*/LEDGER"):
        shutil.copy(ledger, next(flushing.glob("*")) / ledger.name)
    found[killed], found[flushing] = dict(past.latest), dict(past.latest)
    past.close()
    assert min(past.counts.values()) > 100, past.counts
    return found


def damages(times: int, seed: int) -> dict[str, int]:
    """One flipped bit, one cut or one lost file, of any kind; then a value is the latest or a miss,
    and nothing dies. `not_storing`: the store could not be used any more, and said so."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("damages", "right", "misses", "wrong", "empty", "not_storing"), 0)
    by_file: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        wholes = histories(Path(name), rng)
        for round_ in range(times):
            whole, latest = list(wholes.items())[round_ % len(wholes)]
            folder = copied(whole, Path(name) / "damaged")
            files = sorted(f for f in folder.glob("*/*") if f.stat().st_size and f.name != "LOCK")
            path = files[round_ // len(wholes) % len(files)]
            by_file[re.sub(r".*\.|-.*", "", path.name)] += 1
            content = bytearray(path.read_bytes())
            place, how = int(rng.integers(len(content))), rng.integers(10)
            if how < 5:
                content[place] ^= 1 << int(rng.integers(8))
            elif how < 9:
                del content[place:]
            path.write_bytes(content)
            if how == 9:
                path.unlink()
            cache = tiers(folder)
            counts["damages"] += 1
            answers = [cache.lookup(KIND, key(number), 1e6) for number in latest]
            for found, text in zip(answers, latest.values(), strict=True):
                outcome = "right" if found.value == text else "wrong"
                counts[outcome if found.is_hit else "misses"] += 1
            counts["empty"] += not any(found.is_hit for found in answers)
            new = key(NUM_OF_HISTORY)
            cache.put(KIND, new, "new " * 4000, 1.0, 1e6)  # too large for RAM
            counts["not_storing"] += cache.lookup(KIND, new, 1e6).tier != "l2"
            cache.close()
            shutil.rmtree(folder)
    return counts | {f"damages_of_{kind}": number for kind, number in sorted(by_file.items())}


def misses(times: int, seed: int) -> dict[str, int]:
    """64 threads, and 64 coroutines, ask at once for what nobody has computed."""
    counts = dict.fromkeys(("computed_by_threads", "computed_by_coroutines", "asked", "wrong"), 0)
    rng = np.random.default_rng(seed)
    with AggressiveCache(1, None, strategy=CacheStrategy.LRU) as cache:
        for round_ in range(times):
            together = threading.Barrier(64)
            answers: list[Any] = []

            def compute(round_: int = round_) -> int:
                counts["computed_by_threads"] += 1
                return sum(range(int(rng.integers(20_000)))) * 0 + round_

            def ask(
                round_: int = round_,
                together: threading.Barrier = together,
                answers: list[Any] = answers,
                compute: Callable[[], int] = compute,
            ) -> None:
                together.wait()
                answers.append(cache.get_or_compute(f"threads {round_}", compute))

            threads = [threading.Thread(target=ask) for _ in range(64)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            async def compute_later(round_: int = round_) -> int:
                counts["computed_by_coroutines"] += 1
                for _ in range(int(rng.integers(4))):
                    await asyncio.sleep(0)
                return round_

            async def ask_all(
                round_: int = round_, compute_later: Callable[[], Any] = compute_later
            ) -> list[Any]:
                asked = [
                    cache.get_or_compute_async(f"coroutines {round_}", compute_later)
                    for _ in range(64)
                ]
                return list(await asyncio.gather(*asked))

            answers += asyncio.run(ask_all())
            counts["asked"] += len(answers)
            counts["wrong"] += sum(answer != round_ for answer in answers)
    counts["wrong"] += counts["computed_by_threads"] - times
    counts["wrong"] += counts["computed_by_coroutines"] - times
    return counts


def interleavings(times: int, seed: int) -> dict[str, int]:
    """Coroutines read six documents' versions, wait and answer, while documents change and are
    invalidated by tag, glob, key, epoch or all at once, or their answers are set anew: 30 steps in
    an order of its own each time.
    An answer that is older than its documents were when it was asked for is stale."""
    counts = dict.fromkeys(("interleavings", "answers", "computed", "changes", "stale"), 0)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        cache = AggressiveCache(
            0.02,
            0.05,
            name,
            CacheStrategy.LRU,
            ttl_seconds={KIND: 2000.0},
            stale_while_revalidate_seconds=0.0,
            clock=lambda: float(counts["answers"]),
        )
        versions = [0] * 6

        def documents(question: int) -> tuple[int, int]:
            return question % 6, question * 7 % 6

        def read(question: int) -> list[int]:
            return [versions[number] for number in documents(question)]

        async def ask(question: int) -> None:
            at_least = read(question)

            async def compute() -> list[int]:
                counts["computed"] += 1
                seen = read(question)
                for _ in range(int(rng.integers(4))):
                    await asyncio.sleep(0)
                return seen

            def tags(_: Any) -> list[str]:
                return [f"doc{number}" for number in documents(question)]

            answer = await cache.get_or_compute_async(f"q{question}", compute, tags=tags)
            counts["answers"] += 1
            counts["stale"] += any(a < b for a, b in zip(answer, at_least, strict=True))

        def change() -> None:
            number, how = int(rng.integers(6)), rng.integers(26)
            versions[number] += 1
            counts["changes"] += 1
            if how < 14:
                cache.invalidate_tag(f"doc{number}")
            elif how < 16:
                cache.invalidate_pattern("q*")
            elif how < 18:
                for question in range(30):
                    cache.invalidate(f"q{question}")
            elif how < 19:
                cache.clear()
            elif how < 20:
                cache.set_epoch(f"index-{versions}")
            else:  # answers of the new version are set, one change in six so that nothing is kept
                for question in range(30):
                    if number in documents(question):
                        its_tags = [f"doc{each}" for each in documents(question)]
                        life_s = 0.0 if how == 25 else None
                        cache.set(f"q{question}", read(question), KIND, life_s, its_tags)

        async def interleave() -> None:
            for _ in range(times):
                pending = []
                share_of_changes, share_of_turns = 0.3 * rng.random(), rng.random()
                for _ in range(30):
                    if rng.random() < share_of_changes:
                        change()
                    else:
                        pending.append(asyncio.ensure_future(ask(int(rng.integers(30)))))
                    if rng.random() < share_of_turns:
                        await asyncio.sleep(0)
                await asyncio.gather(*pending)
                counts["interleavings"] += 1

        asyncio.run(interleave())
        cache.shutdown()
    return counts


def main() -> int:
    """Run one campaign."""
    campaigns = {f.__name__: f for f in (kills, damages, misses, interleavings)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*campaigns, "write"])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the writer that is to be killed")
    parser.add_argument("--first", type=int, default=0, help="the writer's first step")
    options = parser.parse_args()
    if options.what == "write":
        write_until_killed(options.folder, options.first)
    logging.disable(logging.WARNING)  # a thousand damaged stores have much to say
    counts = campaigns[options.what](options.times, options.seed)
    sys.stdout.write(json.dumps({"what": options.what, "seed": options.seed, **counts}) + "\n")
    return int(any(counts.get(name) for name in ("wrong", "failed_opens", "stale")))


if __name__ == "__main__":
    sys.exit(main())
