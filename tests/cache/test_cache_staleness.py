"""No answer older than the last change of what it rests on, in whatever order things happen."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capibench.cache import AggressiveCache, CacheStrategy


class Documents:
    """Documents with versions; an answer says which versions it was computed from."""

    def __init__(self, num_documents: int) -> None:
        self.versions = [0] * num_documents

    def read(self, question: int) -> list[int]:
        return [self.versions[number] for number in self.of(question)]

    def of(self, question: int) -> tuple[int, int]:
        return question % len(self.versions), question * 7 % len(self.versions)

    def tags(self, question: int) -> list[str]:
        return [f"doc{number}" for number in self.of(question)]


@pytest.mark.parametrize("seed", range(2))
def test_no_stale_answer_in_thousands_of_random_steps(tmp_path: Path, seed: int) -> None:
    """Coroutines read their documents, wait, and answer; meanwhile documents change and are
    invalidated, by tag, glob, key, epoch or all at once, or the answers to them are set anew. Every
    answer is at least as new as the documents were when it was asked for.
    `experiments/005-caching/faults.py` does the like in ten thousand interleavings."""
    rng = np.random.default_rng(seed)
    documents = Documents(6)
    num_computed, num_answers = 0, 0
    cache = AggressiveCache(
        0.02, 0.05, tmp_path, CacheStrategy.LRU, clock=lambda: float(num_answers)
    )

    async def ask(question: int) -> None:
        nonlocal num_computed, num_answers
        at_least = documents.read(question)

        async def compute() -> list[int]:
            nonlocal num_computed
            num_computed += 1
            versions = documents.read(question)
            for _ in range(int(rng.integers(4))):
                await asyncio.sleep(0)
            return versions

        answer = await cache.get_or_compute_async(
            f"q{question}", compute, tags=lambda _: documents.tags(question)
        )
        num_answers += 1
        assert all(a >= b for a, b in zip(answer, at_least, strict=True)), question

    def change() -> None:
        number = int(rng.integers(6))
        how = rng.integers(26)
        documents.versions[number] += 1
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
            cache.set_epoch(f"index-{documents.versions}")
        else:
            kept = {"ttl_seconds": 0.0} if how == 25 else {}
            for question in range(30):
                if number in documents.of(question):
                    answer, tags = documents.read(question), documents.tags(question)
                    cache.set(f"q{question}", answer, tags=tags, **kept)

    async def main() -> None:
        pending: set[asyncio.Task[None]] = set()
        for _ in range(1300):
            if rng.random() < 0.1:
                change()
            else:
                pending.add(asyncio.ensure_future(ask(int(rng.integers(30)))))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            for task in [task for task in pending if task.done()]:
                task.result()
                pending.discard(task)
        await asyncio.gather(*pending)

    asyncio.run(main())
    assert num_answers > 1000
    assert num_computed < 0.8 * num_answers, "it does cache"
    cache.shutdown()


def test_many_threads_leave_every_count_right(tmp_path: Path) -> None:
    """All of the interface at once from eight threads, over tiers that are much too small."""
    cache = AggressiveCache(0.03, 0.2, tmp_path, CacheStrategy.ARC, quotas={"embedding": 0.3})
    documents = Documents(40)
    num_lookups, wrong = [0] * 8, list[Any]()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for step in range(400):
            question, kind = int(rng.integers(120)), ("query_result", "embedding")[step % 2]
            draw = rng.random()
            if draw < 0.5:
                found = cache.get(f"q{question}", kind)
                num_lookups[seed] += 1
                if found is not None and found[0] != question:
                    wrong.append(found)
            elif draw < 0.8:
                found = cache.get_or_compute(
                    f"q{question}",
                    lambda question=question, seed=seed: [question, seed, "x" * 200],
                    kind,
                    tags=documents.tags(question),
                )
                num_lookups[seed] += 1
                if found[0] != question:
                    wrong.append(found)
            elif draw < 0.9:
                cache.set(f"q{question}", [question, seed, "y" * 300], kind, ttl_seconds=1e6)
            elif draw < 0.95:
                cache.invalidate_tag(f"doc{question % 40}")
            else:
                cache.invalidate(f"q{question}")
                stats = cache.get_cache_stats()
                for tier in ("l1_cache", "l2_cache"):
                    if not 0 <= stats[tier]["utilisation"] <= 1:
                        wrong.append(stats)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    stats = cache.get_cache_stats()
    overall = stats["overall"]
    joined_again = overall["total_requests"] - sum(num_lookups)
    assert joined_again == 0
    assert overall["total_hits"] + overall["total_misses"] == overall["total_requests"]
    by_type = stats["by_type"].values()
    assert sum(counts["lookups"] for counts in by_type) == overall["total_requests"]
    for tier in ("l1_cache", "l2_cache"):
        kinds = stats[tier]["by_type"].values()
        assert sum(counts["bytes"] for counts in kinds) == stats[tier]["bytes"]
        assert sum(counts["entries"] for counts in kinds) == stats[tier]["entries"]
    assert stats["l2_cache"]["errors"] == stats["l2_cache"]["damaged"] == 0
    assert cache.clear() >= 0
    stats = cache.get_cache_stats()
    assert stats["l1_cache"]["bytes"] == stats["l2_cache"]["bytes"] == 0
    cache.shutdown()
