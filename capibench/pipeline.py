"""The one path of a request through the stack, readable top to bottom.

query → result cache → embedding cache → embed (→ semantic cache) → search → prompt → output cache →
generate → store

Every stage is timed on its own; whatever goes wrong becomes the row's status and error, so that
one bad request never takes a run with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from capibench.batching.batcher import Batcher
from capibench.batching.strategies.greedy import Greedy
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.library.flights import Flight, Flights, LeaderLeft
from capibench.cache.similar.semantic import SemanticCache
from capibench.cache.tiers.l1 import Lookup
from capibench.cache.tiers.tiered import TieredCache
from capibench.clock import Compute
from capibench.embedder.embedder import Embedder, Vectors
from capibench.engine.engine import Engine, Generation, GenerationRequest
from capibench.errors import DeadlinePassed, Rejected
from capibench.index.index import Ids, TextIndex, VectorIndex
from capibench.records import Request, RequestRecord, RequestStatus
from capibench.request_row import RequestRow, result_columns

_log = logging.getLogger(__name__)


class Prompt(Protocol):
    """How question and passages become one prompt, and the answer is read off the output."""

    top_k: int

    def render(self, question: str, passages: Sequence[str]) -> str: ...

    def extract_answer(self, generated: str) -> str: ...


@dataclass(frozen=True)
class Stack:
    """Everything a pipeline is composed of, loaded and ready."""

    passage_ids: Sequence[str]  # position = id in the index
    passage_texts: Sequence[str]
    embedder: Embedder
    index: VectorIndex
    prompt: Prompt
    engine: Engine
    generation: Batcher[GenerationRequest, Generation]
    cache: TieredCache | None
    single_flight: bool  # a request that misses what another one is computing waits for that
    semantic: SemanticCache | None
    identity: Mapping[str, str]  # part → fingerprint; every cache key contains those it depends on


class RagPipeline:
    """Answers requests with a `Stack`; built once per run, inside its event loop."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._now = asyncio.get_running_loop().time
        self.origin_s = self._now()  # rows count their times from here
        self._compute = {name: Compute(name) for name in ("embed", "search")}
        self._embed: Batcher[str, Vectors] = Batcher(
            self._run_embedder, Greedy(stack.embedder.max_batch_size), 1, max_queue_size=100_000
        )
        self._search: Batcher[tuple[Vectors, str], list[int]] = Batcher(
            self._run_index, Greedy(stack.index.max_batch_size), 1, max_queue_size=100_000
        )
        self._flights = Flights()
        self._renewals: set[asyncio.Task[None]] = set()  # of stale results, in the background
        self._tends = stack.cache is not None and stack.cache.prefetches
        self._will_tend = False
        identity = stack.identity
        retrieval = (identity["corpus"], identity["embedder"], identity["index"])
        generation = (identity["prompt"], identity["model"])
        self._key_parts = {
            CacheType.QUERY_RESULT: (*retrieval, *generation),
            CacheType.EMBEDDING: (identity["embedder"],),
            CacheType.MODEL_OUTPUT: (identity["model"],),
        }

    def start(self) -> None:
        """Start the batchers; the engine was started by whoever loaded it."""
        for batcher in (self._embed, self._search, self._stack.generation):
            batcher.start()

    async def stop(self) -> None:
        """Drain what is queued, then free the worker threads."""
        while self._renewals:
            await asyncio.wait(self._renewals)
        for batcher in (self._embed, self._search, self._stack.generation):
            await batcher.stop(drain=True)
        for compute in self._compute.values():
            compute.close()

    async def answer(self, request: Request, intended_s: float, sent_s: float) -> RequestRecord:
        """One request, one row. `intended_s` and `sent_s` are absolute loop times."""
        row = RequestRow(request, intended_s, sent_s, self._now, self.origin_s)
        deadline_s = float("inf") if request.deadline_s is None else intended_s + request.deadline_s
        try:
            await self._answer(request, deadline_s, row)
            row.values["status"] = RequestStatus.OK
        except Rejected as error:
            row.fail(RequestStatus.REJECTED, error)
        except DeadlinePassed as error:
            row.fail(RequestStatus.TIMED_OUT, error)
        except Exception as error:  # noqa: BLE001 - any failure of a stage is this row's error, and the run goes on
            row.fail(RequestStatus.FAILED, error)
        if self._tends and not self._will_tend:
            self._will_tend = True
            asyncio.get_running_loop().call_soon(self._tend)  # once this answer is out
        return row.finish()

    def _tend(self) -> None:
        """Let the cache prefetch."""
        self._will_tend = False
        assert self._stack.cache is not None
        self._stack.cache.tend(self._now())

    async def _answer(self, request: Request, deadline_s: float, row: RequestRow) -> None:
        """The result from the cache, or from a request that computes it already, or computed."""
        key = self._key(CacheType.QUERY_RESULT, request.query, str(request.max_new_tokens))
        while True:
            found = self._lookup(CacheType.QUERY_RESULT, key, allow_stale=True)
            row.values["result_cache"] = found.tier
            row.passed("result_cache")
            if found.is_hit:
                if found.is_stale:
                    self._renew(request, key)
                row.values.update(served_by=f"result_{found.tier}", **result_columns(found.value))
                return
            if not self._stack.single_flight or found.tier == "off":
                await self._answer_anew(request, key, found.tier, deadline_s, row)
                return
            flight, leads = self._join(key, request.query)
            if leads:
                await self._lead(flight, request, key, deadline_s, row)
                return
            row.values["result_cache"] = "joined"
            try:
                async with asyncio.timeout_at(None if deadline_s == math.inf else deadline_s):
                    result = await asyncio.wrap_future(flight.future)
            except LeaderLeft:
                continue  # it failed by its own deadline, say: this one tries itself
            except TimeoutError as error:
                raise DeadlinePassed("while another request computed the same") from error
            finally:
                row.passed("result_cache")
            row.values.update(served_by="result_joined", **result_columns(result))
            return

    async def _lead(
        self, flight: Flight, request: Request, key: bytes, deadline_s: float, row: RequestRow
    ) -> None:
        """Compute for all who wait; they get a result or try themselves."""
        try:
            result = await self._answer_anew(request, key, "miss", deadline_s, row)
        except BaseException:
            self._flights.crash(key, flight, LeaderLeft())
            raise
        self._flights.land(key, flight, result)

    def _join(self, key: bytes, query: str) -> tuple[Flight, bool]:
        cache = self._stack.cache
        assert cache is not None
        return self._flights.join(
            key,
            cache.position(),
            asyncio.current_task(),
            lambda flight: cache.is_outdated(flight.since, key, query),
        )

    def _renew(self, request: Request, key: bytes) -> None:
        """Compute a stale result anew, beside the requests, once at a time."""
        if self._flights.is_under_way(key):
            return
        flight, leads = self._join(key, request.query)
        assert leads
        now_s = self._now()

        async def renew() -> None:
            row = RequestRow(request, now_s, now_s, self._now, self.origin_s)
            try:
                await self._lead(flight, request, key, float("inf"), row)
            except Exception as error:  # noqa: BLE001 - nobody waits; the next one tries again
                _log.warning("a stale result could not be computed anew: %s", error)

        task = asyncio.get_running_loop().create_task(renew())
        flight.task = task
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _answer_anew(
        self, request: Request, key: bytes, tier: str, deadline_s: float, row: RequestRow
    ) -> Mapping[str, Any]:
        """Everything after a miss. Returns the result, which is stored if its type is cached."""
        stack = self._stack
        budget = str(request.max_new_tokens)
        started_s = self._now()
        since = 0 if stack.cache is None else stack.cache.position()
        vector = await self._vector(request, deadline_s, row)
        audited: Mapping[str, Any] | None = None
        if stack.semantic is not None and tier == "miss":
            near = self._near_result(stack.semantic, budget, vector)
            row.passed("result_cache")
            if near is not None:
                if not stack.semantic.is_audited():
                    row.values["result_cache"] = "semantic"
                    row.values.update(served_by="result_semantic", **result_columns(near))
                    return near
                audited = near
        searched = await self._search.submit(
            (vector, request.query), priority=request.priority, num_tokens=0, deadline_s=deadline_s
        )
        row.passed_batched("search", searched)
        positions = searched.value
        retrieved = tuple(stack.passage_ids[position] for position in positions)
        row.values["retrieved_ids"] = retrieved
        prompt = stack.prompt.render(
            request.query, [stack.passage_texts[position] for position in positions]
        )
        row.passed("prompt")
        output, output_cost_s = await self._output(request, prompt, deadline_s, row)

        result = {
            "answer": stack.prompt.extract_answer(str(output["text"])),
            "retrieved_ids": list(retrieved),
            "prompt_tokens": output["prompt_tokens"],
            "output_tokens": output["output_tokens"],
        }
        row.values.update(result_columns(result))
        if row.values["output_cache"] == "miss":
            output_key = self._key(CacheType.MODEL_OUTPUT, prompt, budget)
            self._put(CacheType.MODEL_OUTPUT, output_key, output, output_cost_s)
        if tier == "miss":
            cost_s = self._now() - started_s
            # It carries the ids of its passages: who changes a passage can remove what rests on it.
            self._put(
                CacheType.QUERY_RESULT,
                key,
                result,
                cost_s,
                name=request.query,
                tags=retrieved,
                since=since,
            )
            if stack.semantic is not None:
                stack.semantic.add(budget, key, vector)
                if audited is not None:
                    stack.semantic.audit(audited["answer"], result["answer"])
        row.passed("store")
        return result

    def _near_result(
        self, semantic: SemanticCache, budget: str, vector: Vectors
    ) -> Mapping[str, Any] | None:
        """The cached result of the nearest question, if it is near enough."""
        key = semantic.find(budget, vector)
        if key is None:
            return None
        found = self._lookup(CacheType.QUERY_RESULT, key)
        if not found.is_hit:
            semantic.forget(budget, key)
            return None
        near: Mapping[str, Any] = found.value
        return near

    async def _vector(self, request: Request, deadline_s: float, row: RequestRow) -> Vectors:
        """The query's unit vector, from the cache or computed."""
        key = self._key(CacheType.EMBEDDING, request.query)
        found = self._lookup(CacheType.EMBEDDING, key)
        row.values["embedding_cache"] = found.tier
        row.passed("embedding_cache")
        if found.is_hit:
            return np.asarray(found.value, dtype=np.float32)
        embedded = await self._embed.submit(
            request.query, priority=request.priority, num_tokens=0, deadline_s=deadline_s
        )
        row.passed_batched("embed", embedded)
        if found.tier == "miss":
            cost_s = embedded.done_s - embedded.dispatched_s
            self._put(CacheType.EMBEDDING, key, embedded.value, cost_s, name=request.query)
        row.passed("store")
        return embedded.value

    async def _output(
        self, request: Request, prompt: str, deadline_s: float, row: RequestRow
    ) -> tuple[Mapping[str, Any], float]:
        """The model's output for `prompt` and the seconds it cost to generate."""
        key = self._key(CacheType.MODEL_OUTPUT, prompt, str(request.max_new_tokens))
        found = self._lookup(CacheType.MODEL_OUTPUT, key)
        row.values["output_cache"] = found.tier
        row.passed("output_cache")
        if found.is_hit:
            row.values["served_by"] = f"output_{found.tier}"
            return found.value, 0.0
        num_tokens = self._stack.engine.count_tokens(prompt, request.max_new_tokens)
        row.passed("prompt")
        generated = await self._stack.generation.submit(
            GenerationRequest(prompt, request.max_new_tokens),
            priority=request.priority,
            num_tokens=num_tokens,
            deadline_s=deadline_s,
        )
        row.passed_batched("generate", generated)
        row.values.update(
            served_by="engine",
            batch_id=generated.batch_id,
            batch_size=generated.batch_size,
            batch_reason=generated.reason,
            first_token_s=generated.value.first_token_s - self.origin_s,
            last_token_s=generated.value.last_token_s - self.origin_s,
        )
        output = {
            "text": generated.value.text,
            "prompt_tokens": generated.value.prompt_tokens,
            "output_tokens": generated.value.output_tokens,
        }
        return output, generated.done_s - generated.dispatched_s

    async def _run_embedder(self, texts: Sequence[str], worker: int) -> Sequence[Vectors]:
        embedder = self._stack.embedder
        return list(await self._compute["embed"].call(embedder, embedder.encode, texts))

    async def _run_index(
        self, asked: Sequence[tuple[Vectors, str]], worker: int
    ) -> list[list[int]]:
        index = self._stack.index
        found = await self._compute["search"].call(index, self._find, asked)
        return [[int(position) for position in row if position >= 0] for row in found]

    def _find(self, asked: Sequence[tuple[Vectors, str]]) -> Ids:
        """Positions [n, k] of the passages for each question, given as vector and as text."""
        index = self._stack.index
        k = min(self._stack.prompt.top_k, len(self._stack.passage_ids))
        queries = np.stack([vector for vector, _ in asked])
        if isinstance(index, TextIndex):
            return index.search_texts(queries, [text for _, text in asked], k)[0]
        return index.search(queries, k)[0]

    def _key(self, kind: CacheType, *parts: str) -> bytes:
        return cache_key(kind, *self._key_parts[kind], *parts)

    def _lookup(self, kind: CacheType, key: bytes, *, allow_stale: bool = False) -> Lookup:
        cache = self._stack.cache
        if cache is None:
            return Lookup(None, "off")
        return cache.lookup(kind, key, self._now(), allow_stale=allow_stale)

    def _put(
        self,
        kind: CacheType,
        key: bytes,
        value: object,
        cost_s: float,
        *,
        name: str = "",
        tags: tuple[str, ...] = (),
        since: int | None = None,
    ) -> None:
        cache = self._stack.cache
        assert cache is not None
        cache.put(kind, key, value, cost_s, self._now(), name=name, tags=tags, since=since)
