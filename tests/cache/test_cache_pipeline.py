"""What the pipeline does with its cache: tags, joined misses, stale answers, similar questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capibench.batching.batcher import Batcher
from capibench.batching.strategies.greedy import Greedy
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.prefetching.prefetch import Followers
from capibench.cache.prefetching.prefetch_switch import SwitchRule
from capibench.cache.similar.semantic import Cosine, SemanticCache
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.tiered import TieredCache
from capibench.clock import run_virtual
from capibench.embedder.hashing import Hashing
from capibench.engine.engine import Generation, GenerationRequest
from capibench.pipeline import RagPipeline, Stack
from capibench.records import Phase, Request, RequestRecord

TTL_S = {CacheType.QUERY_RESULT: 100.0, CacheType.EMBEDDING: 1000.0, CacheType.MODEL_OUTPUT: 5.0}


class FirstPassages:
    """An index that finds the same two passages for every question."""

    max_batch_size = 8

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(np.arange(k), (len(queries), 1)), np.zeros((len(queries), k))


class Prompt:
    top_k = 2

    def __init__(self) -> None:
        self.texts: list[str] = []

    def render(self, question: str, passages: Sequence[str]) -> str:
        return f"{question}|{'|'.join(passages)}"

    def extract_answer(self, generated: str) -> str:
        return generated.partition("|")[2]


class Engine:
    """Answers with the prompt itself after a second; fails while it is told to."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.num_failures = 0

    def count_tokens(self, prompt: str, max_new_tokens: int) -> int:
        return 1

    async def generate(
        self, batch: Sequence[GenerationRequest], worker: int
    ) -> Sequence[Generation]:
        self.prompts.extend(request.prompt for request in batch)
        await asyncio.sleep(1.0)
        if self.num_failures:
            self.num_failures -= 1
            raise RuntimeError("no answer")
        now = asyncio.get_running_loop().time()
        return [Generation(r.prompt, 1, r.max_new_tokens, now, now) for r in batch]


class Bench:
    """A pipeline over two passages, inside a loop under virtual time."""

    def __init__(
        self,
        *,
        single_flight: bool = False,
        stale_s: float = 0.0,
        semantic: Any = None,
        cache: TieredCache | None = None,
    ) -> None:
        self.passages = ["red", "blue"]
        self.engine = Engine()
        self.cache = cache or TieredCache(L1(Lru(), 1 << 20), None, TTL_S, stale_s=stale_s)
        self.pipeline = RagPipeline(
            Stack(
                passage_ids=["p0", "p1"],
                passage_texts=self.passages,
                embedder=_InLoop(Hashing(64, 8)),  # type: ignore[arg-type]
                index=_InLoop(FirstPassages()),  # type: ignore[arg-type]
                prompt=Prompt(),
                engine=self.engine,  # type: ignore[arg-type]
                generation=Batcher(self.engine.generate, Greedy(1), 4, max_queue_size=100),
                cache=self.cache,
                single_flight=single_flight,
                semantic=semantic,
                identity=dict.fromkeys(("corpus", "embedder", "index", "prompt", "model"), "x"),
            )
        )
        self.pipeline.start()
        self.num_asked = 0

    async def ask(self, query: str, deadline_s: float | None = None) -> RequestRecord:
        self.num_asked += 1
        now = asyncio.get_running_loop().time()
        request = Request(
            self.num_asked, query, query, "short", 3, 8, now, deadline_s, Phase.MEASURE
        )
        return await self.pipeline.answer(request, now, now)


class _InLoop:
    """Modeled: works in the loop's own thread, taking no time."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def service_s(self, num_items: int) -> float:
        return 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def under_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@under_virtual_time
async def test_a_changed_passage_takes_the_answers_that_rest_on_it_along() -> None:
    bench = Bench()
    assert (await bench.ask("which colour")).result_cache == "miss"
    assert (await bench.ask("which colour")).result_cache == "l1"
    bench.passages[0] = "green"
    assert bench.cache.remove_tagged("p0") == 1
    fresh = await bench.ask("which colour")
    assert (fresh.result_cache, fresh.answer) == ("miss", "green|blue")
    assert bench.cache.remove_tagged("another passage") == 0
    await bench.pipeline.stop()


@under_virtual_time
async def test_an_answer_that_was_being_computed_when_its_passage_changed_is_not_kept() -> None:
    bench = Bench(single_flight=True)
    first = asyncio.ensure_future(bench.ask("which colour"))
    await asyncio.sleep(0.5)
    bench.passages[0] = "green"
    bench.cache.remove_tagged("p0")
    second = await bench.ask("which colour")  # does not join what rests on the old passage
    assert second.answer == "green|blue"
    assert (await first).answer == "red|blue"
    third = await bench.ask("which colour")
    assert (third.result_cache, third.answer) == ("l1", second.answer)
    await bench.pipeline.stop()


@under_virtual_time
async def test_requests_that_miss_together_compute_once_when_switched_on() -> None:
    for single_flight, num_computed in ((True, 1), (False, 64)):
        bench = Bench(single_flight=single_flight)
        rows = await asyncio.gather(*(bench.ask("which colour") for _ in range(64)))
        assert len(bench.engine.prompts) == num_computed
        assert {row.answer for row in rows} == {"red|blue"}
        joined = [row for row in rows if row.result_cache == "joined"]
        assert len(joined) == 64 - num_computed
        for row in joined:
            assert (row.served_by, row.generate_s) == ("result_joined", 0.0)
            assert row.result_cache_s == pytest.approx(1.0)
            assert row.retrieved_ids == ("p0", "p1")
        await bench.pipeline.stop()


@under_virtual_time
async def test_who_waits_tries_itself_when_the_other_request_fails() -> None:
    bench = Bench(single_flight=True)
    bench.engine.num_failures = 1
    rows = await asyncio.gather(*(bench.ask("which colour") for _ in range(3)))
    assert [row.status for row in rows] == ["failed", "ok", "ok"]
    assert len(bench.engine.prompts) == 2
    await bench.pipeline.stop()


@under_virtual_time
async def test_who_waits_for_another_request_keeps_its_own_deadline() -> None:
    bench = Bench(single_flight=True)
    rows = await asyncio.gather(bench.ask("which colour"), bench.ask("which colour", 0.25))
    assert [row.status for row in rows] == ["ok", "timed_out"]
    assert rows[1].done_s == pytest.approx(0.25)
    await bench.pipeline.stop()


@under_virtual_time
async def test_a_stale_answer_is_served_once_more_and_computed_anew_beside() -> None:
    bench = Bench(stale_s=50.0)
    await bench.ask("which colour")
    bench.passages[0] = "green"
    await asyncio.sleep(TTL_S[CacheType.QUERY_RESULT] + 10)
    rows = await asyncio.gather(*(bench.ask("which colour") for _ in range(5)))
    assert {(row.result_cache, row.answer) for row in rows} == {("l1", "red|blue")}
    assert {row.result_cache_s for row in rows} == {0.0}
    await asyncio.sleep(2)
    assert len(bench.engine.prompts) == 2
    assert (await bench.ask("which colour")).answer == "green|blue"
    await asyncio.sleep(TTL_S[CacheType.QUERY_RESULT] + 60)  # too stale
    assert (await bench.ask("which colour")).result_cache == "miss"
    await bench.pipeline.stop()


def semantic(threshold: float | None, audit_share: float) -> SemanticCache:
    settings = Cosine(0.05, 0.95, 100, 0.5, audit_share, 0.8, 100)
    return SemanticCache(settings, threshold, np.random.default_rng(0))


@under_virtual_time
async def test_a_similar_question_is_answered_from_the_cache_and_others_are_not() -> None:
    bench = Bench(semantic=semantic(0.8, 1e-9))
    first = await bench.ask("what does the join method of a list do")
    similar = await bench.ask("what does the join method of a list do please")
    other = await bench.ask("how are files opened")
    assert (similar.result_cache, similar.served_by) == ("semantic", "result_semantic")
    assert similar.answer == first.answer
    assert other.result_cache == "miss"
    key = cache_key(CacheType.QUERY_RESULT, *"xxxxx", first.question_id, "8")
    assert bench.cache.remove(key)
    gone = await bench.ask("what does the join method of a list do now")
    assert gone.result_cache == "miss", "what is invalidated is not served to similar questions"
    await bench.pipeline.stop()


@under_virtual_time
async def test_audited_hits_are_computed_and_the_wrong_ones_counted() -> None:
    cache = semantic(0.8, 1.0)
    bench = Bench(semantic=cache)
    await bench.ask("what does the join method of a list do")
    similar = await bench.ask("what does the join method of a list do please")
    assert (similar.result_cache, similar.served_by) == ("miss", "engine")
    stats = cache.stats()
    assert (stats["served"], stats["audited"], stats["wrong"]) == (0, 1, 0)
    bench.passages[:] = ["quite another text", "that shares no words with it"]
    await bench.ask("what does the join method of a list do again")
    assert (cache.stats()["audited"], cache.stats()["wrong"]) == (2, 1)
    await bench.pipeline.stop()


@under_virtual_time
async def test_without_a_threshold_nothing_is_similar() -> None:
    bench = Bench(semantic=semantic(None, 0.5))
    await bench.ask("what does the join method of a list do")
    similar = await bench.ask("what does the join method of a list do please")
    assert similar.result_cache == "miss"
    await bench.pipeline.stop()


@pytest.mark.parametrize(("prefetches", "tier"), [(False, "l2"), (True, "l1")])
def test_between_requests_the_cache_prefetches_what_comes_next(
    tmp_path: Path, prefetches: bool, tier: str
) -> None:
    rule = SwitchRule(0.2, 0.95, trial_prefetches=8, block_prefetches=8, rest_accesses=1000)
    cache = TieredCache(
        L1(Lru(), 1 << 13),
        L2(Lru(), 1 << 20, tmp_path),
        {CacheType.QUERY_RESULT: 1e9},
        prefetch=Followers(2, 4, 2, 1000, 2, rule) if prefetches else None,
    )

    async def three_laps() -> set[str]:
        bench = Bench(cache=cache)
        tiers: list[str] = []
        for _ in range(3):
            for number in range(20):
                tiers.append((await bench.ask(f"question {number}")).result_cache)
                await asyncio.sleep(1)
        await bench.pipeline.stop()
        return set(tiers[40:])

    assert run_virtual(three_laps()) == {tier}
    cache.close()
