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
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capibench.cache import AggressiveCache, CacheStrategy
from capibench.cache.compression import Compression
from capibench.cache.envelope import encode
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.residents import Entry

KIND = CacheType.QUERY_RESULT
COMPRESSION = Compression(level=3, min_saving=0.1, dictionary_kib=4, num_samples=40)
NUM_KEYS = 50
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


def damages(times: int, seed: int) -> dict[str, int]:
    """One flipped bit, or one cut, in any file; then a value is the right one or a miss, and
    nothing dies. `not_storing`: the store could not be used any more, and said so."""
    rng = np.random.default_rng(seed)
    records = [" ".join(WORDS[n : n + 20]) + f" {n}" for n in range(200)]
    counts = dict.fromkeys(("damages", "right", "misses", "wrong", "not_storing"), 0)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        for begin, end in ((0, 120), (120, 160), (160, 200)):  # two sorted files and a log
            store = opened(whole)
            for number in range(begin, end):
                record = encode(records[number])
                store.put(key(number), Entry(KIND, 1.0, 1e9), record, float(number))
            store.close()
        for round_ in range(times):
            folder = Path(name) / "damaged"
            shutil.copytree(whole, folder)
            files = sorted(f for f in folder.glob("*/*") if f.stat().st_size and f.name != "LOCK")
            content = bytearray(files[round_ % len(files)].read_bytes())
            place = int(rng.integers(len(content)))
            if round_ % 3 == 2:
                del content[place:]
            else:
                content[place] ^= 1 << int(rng.integers(8))
            files[round_ % len(files)].write_bytes(content)
            store = opened(folder)
            counts["damages"] += 1
            for number, text in enumerate(records):
                found = store.get(KIND, key(number), 300.0)
                is_right = found is not None and found.value == text
                outcome = "misses" if found is None else "right" if is_right else "wrong"
                counts[outcome] += 1
            stored = store.put(key(999), Entry(KIND, 1.0, 1e9), encode("new"), 300.0)
            counts["not_storing"] += not stored
            store.close()
            shutil.rmtree(folder)
    return counts


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
    invalidated by tag, glob, key, epoch or all at once: 30 steps in an order of its own each time.
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
            number, how = int(rng.integers(6)), rng.integers(20)
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
            else:
                cache.set_epoch(f"index-{versions}")

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
