"""The one path of a request through the stack, readable top to bottom.

query → result cache → embedding cache → embed → search → prompt → output cache → generate → store

Every stage is timed on its own; whatever goes wrong becomes the row's status and error, so that
one bad request never takes a run with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from capibench.batching.batcher import Answered, DynamicBatcher
from capibench.batching.strategies.greedy import Greedy
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiered import TieredCache
from capibench.clock import Compute
from capibench.embedder.embedder import Embedder, Vectors
from capibench.engine.engine import Engine, Generation, GenerationRequest
from capibench.errors import DeadlinePassed, QueueFull
from capibench.index.index import VectorIndex
from capibench.records import STAGES, Request, RequestRecord, RequestStatus


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
    generation: DynamicBatcher[GenerationRequest, Generation]
    cache: TieredCache | None
    identity: Mapping[str, str]  # part → fingerprint; every cache key contains those it depends on


class RagPipeline:
    """Answers requests with a `Stack`; built once per run, inside its event loop."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._now = asyncio.get_running_loop().time
        self.origin_s = self._now()  # rows count their times from here
        self._compute = {name: Compute(name) for name in ("embed", "search")}
        self._embed: DynamicBatcher[str, Vectors] = DynamicBatcher(
            self._run_embedder, Greedy(stack.embedder.max_batch_size), 1, max_queue_size=100_000
        )
        self._search: DynamicBatcher[Vectors, list[int]] = DynamicBatcher(
            self._run_index, Greedy(stack.index.max_batch_size), 1, max_queue_size=100_000
        )
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
        for batcher in (self._embed, self._search, self._stack.generation):
            await batcher.stop(drain=True)
        for compute in self._compute.values():
            compute.close()

    async def answer(self, request: Request, intended_s: float, sent_s: float) -> RequestRecord:
        """One request, one row. `intended_s` and `sent_s` are absolute loop times."""
        row = _Row(request, intended_s, sent_s, self._now, self.origin_s)
        deadline_s = float("inf") if request.deadline_s is None else intended_s + request.deadline_s
        try:
            await self._answer(request, deadline_s, row)
            row.values["status"] = RequestStatus.OK
        except QueueFull as error:
            row.fail(RequestStatus.REJECTED, error)
        except DeadlinePassed as error:
            row.fail(RequestStatus.TIMED_OUT, error)
        except Exception as error:  # noqa: BLE001 - any failure of a stage is this row's error, and the run goes on
            row.fail(RequestStatus.FAILED, error)
        return row.finish()

    async def _answer(self, request: Request, deadline_s: float, row: _Row) -> None:
        stack = self._stack
        budget = str(request.max_new_tokens)
        started_s = self._now()
        result_key = self._key(CacheType.QUERY_RESULT, request.query, budget)
        found, tier = self._lookup(CacheType.QUERY_RESULT, result_key)
        row.values["result_cache"] = tier
        row.passed("result_cache")
        if tier in ("l1", "l2"):
            row.values.update(served_by=f"result_{tier}", **_result_columns(found))
            return

        vector = await self._vector(request, deadline_s, row)
        searched = await self._search.submit(
            vector, priority=request.priority, num_tokens=0, deadline_s=deadline_s
        )
        row.passed_batched("search", searched)
        positions = searched.value
        row.values["retrieved_ids"] = tuple(stack.passage_ids[position] for position in positions)
        prompt = stack.prompt.render(
            request.query, [stack.passage_texts[position] for position in positions]
        )
        row.passed("prompt")
        output, output_cost_s = await self._output(request, prompt, deadline_s, row)

        result = {
            "answer": stack.prompt.extract_answer(str(output["text"])),
            "retrieved_ids": list(row.values["retrieved_ids"]),
            "prompt_tokens": output["prompt_tokens"],
            "output_tokens": output["output_tokens"],
        }
        row.values.update(_result_columns(result))
        if row.values["output_cache"] == "miss":
            output_key = self._key(CacheType.MODEL_OUTPUT, prompt, budget)
            self._put(CacheType.MODEL_OUTPUT, output_key, output, output_cost_s)
        if tier == "miss":
            self._put(CacheType.QUERY_RESULT, result_key, result, self._now() - started_s)
        row.passed("store")

    async def _vector(self, request: Request, deadline_s: float, row: _Row) -> Vectors:
        """The query's unit vector, from the cache or computed."""
        key = self._key(CacheType.EMBEDDING, request.query)
        found, tier = self._lookup(CacheType.EMBEDDING, key)
        row.values["embedding_cache"] = tier
        row.passed("embedding_cache")
        if tier in ("l1", "l2"):
            return np.asarray(found, dtype=np.float32)
        embedded = await self._embed.submit(
            request.query, priority=request.priority, num_tokens=0, deadline_s=deadline_s
        )
        row.passed_batched("embed", embedded)
        if tier == "miss":
            cost_s = embedded.done_s - embedded.dispatched_s
            self._put(CacheType.EMBEDDING, key, embedded.value, cost_s)
        row.passed("store")
        return embedded.value

    async def _output(
        self, request: Request, prompt: str, deadline_s: float, row: _Row
    ) -> tuple[Mapping[str, Any], float]:
        """The model's output for `prompt` and the seconds it cost to generate."""
        key = self._key(CacheType.MODEL_OUTPUT, prompt, str(request.max_new_tokens))
        found, tier = self._lookup(CacheType.MODEL_OUTPUT, key)
        row.values["output_cache"] = tier
        row.passed("output_cache")
        if tier in ("l1", "l2"):
            row.values["served_by"] = f"output_{tier}"
            return found, 0.0
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

    async def _run_index(self, vectors: Sequence[Vectors], worker: int) -> list[list[int]]:
        index, k = self._stack.index, self._stack.prompt.top_k
        ids, _ = await self._compute["search"].call(
            index, lambda queries: index.search(queries, k), np.stack(vectors)
        )
        return [[int(position) for position in row if position >= 0] for row in ids]

    def _key(self, kind: CacheType, *parts: str) -> bytes:
        return cache_key(kind, *self._key_parts[kind], *parts)

    def _lookup(self, kind: CacheType, key: bytes) -> tuple[Any, str]:
        cache = self._stack.cache
        if cache is None:
            return None, "off"
        found = cache.lookup(kind, key, self._now())
        return found.value, found.tier

    def _put(self, kind: CacheType, key: bytes, value: object, cost_s: float) -> None:
        assert self._stack.cache is not None
        self._stack.cache.put(kind, key, value, cost_s, self._now())


class _Row:
    """A request's row while it is being filled."""

    def __init__(
        self,
        request: Request,
        intended_s: float,
        sent_s: float,
        now: Callable[[], float],
        origin_s: float,
    ) -> None:
        self._now = now
        self._origin_s = origin_s
        self.values: dict[str, Any] = {
            "request_id": request.id,
            "phase": str(request.phase),
            "question_id": request.question_id,
            "query_class": request.query_class,
            "priority": int(request.priority),
            "status": RequestStatus.FAILED,
            "error": None,
            "intended_s": intended_s - origin_s,
            "sent_s": sent_s - origin_s,
            "first_token_s": None,
            "last_token_s": None,
            "deadline_s": request.deadline_s,
            **{f"{stage}_s": 0.0 for stage in STAGES},
            "served_by": "",
            "result_cache": "off",
            "embedding_cache": "off",
            "output_cache": "off",
            "batch_id": None,
            "batch_size": None,
            "batch_reason": None,
            "prompt_tokens": None,
            "output_tokens": None,
            "max_new_tokens": request.max_new_tokens,
            "retrieved_ids": (),
            "answer": None,
        }
        self.values["sender_s"] = sent_s - intended_s
        self._passed_s = sent_s
        self._last_stage = "sender"

    def passed(self, stage: str, at_s: float | None = None) -> None:
        """The request has left `stage`: it took all the time since the stage before it."""
        now_s = self._now() if at_s is None else at_s
        self.values[f"{stage}_s"] += now_s - self._passed_s
        self._passed_s = now_s
        self._last_stage = stage

    def passed_batched(self, stage: str, answered: Answered[Any]) -> None:
        """The same for a stage behind a batcher: until its batch left, and until the answer was
        back in hand."""
        self.passed(f"{stage}_queue", answered.dispatched_s)
        self.passed(stage)

    def fail(self, status: RequestStatus, error: Exception) -> None:
        self.values["status"] = status
        self.values["error"] = f"{type(error).__name__}: {error}"
        self.values["served_by"] = ""
        self.values["answer"] = None

    def finish(self) -> RequestRecord:
        """The row; a successful request's last stage lasts until the answer is out of here."""
        done_s = self._now()
        if self.values["status"] == RequestStatus.OK:
            self.passed(self._last_stage, done_s)
        self.values["status"] = str(self.values["status"])
        return RequestRecord(done_s=done_s - self._origin_s, **self.values)


def _result_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "answer": result["answer"],
        "retrieved_ids": tuple(result["retrieved_ids"]),
        "prompt_tokens": result["prompt_tokens"],
        "output_tokens": result["output_tokens"],
    }
