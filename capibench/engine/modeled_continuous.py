"""States how long iteration-level batching takes instead of running it: the twin of
`transformers_continuous` for virtual time.

It reads the table of `modeled`, so that under it batching strategies differ by what they decide
and not by two measurements of the same machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.modeled import TEXT, Modeled
from capibench.engine.prefill_plan import plan_prefill
from capibench.errors import RequestFailed
from capibench.model.language_model import LanguageModel


@dataclass(slots=True, eq=False)
class _Row:
    prompt_tokens: int
    num_new_tokens: int
    unread: int
    num_tokens: int = 0
    first_token_s: float = 0.0
    last_token_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Batch:
    rows: list[_Row]
    future: asyncio.Future[None]


@dataclass(slots=True)
class _Worker:
    batches: list[_Batch] = field(default_factory=list)  # in order of arrival
    num_rows: int = 0
    iterating: asyncio.Task[None] | None = None


@dataclass
class ModeledContinuous(Modeled):
    """Time of an iteration: one decode step by the rows that decode, or `base_s` if none does,
    and `prefill_s_per_token` for every prompt token read in it; no padding, no prefix cache."""

    max_rows: int
    prefill_chunk_tokens: int | None

    joins_running: ClassVar[bool] = True

    _workers: list[_Worker] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_rows", "prefill_chunk_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}; expected at least 1")
        self._workers = []

    async def start(self, model: LanguageModel | None) -> None:
        """Begin with no rows."""
        self._workers = [_Worker() for _ in range(self.num_workers)]

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Take part from the worker's next iteration on; the text is a marker.

        Raises:
            RequestFailed: `max_rows` would be exceeded, a request asks for no tokens, or the
                engine was stopped.
        """
        if not self._workers:
            raise RequestFailed("the engine is not running")
        fewest = min(request.max_new_tokens for request in batch)
        if fewest < 1:
            raise RequestFailed(f"max_new_tokens is {fewest}; expected at least 1")
        state = self._workers[worker]
        if state.num_rows + len(batch) > self.max_rows:
            raise RequestFailed(
                f"{state.num_rows + len(batch)} requests at once on worker {worker} exceed "
                f"engine.max_rows={self.max_rows}; expected a batching.strategy.max_batch_size of "
                "at most that"
            )
        rows = []
        for request in batch:
            prompt_tokens = self.count_tokens(request.prompt)
            rows.append(_Row(prompt_tokens, request.max_new_tokens, prompt_tokens))
        loop = asyncio.get_running_loop()
        joined = _Batch(rows, loop.create_future())
        state.batches.append(joined)
        state.num_rows += len(rows)
        if state.iterating is None:
            state.iterating = loop.create_task(self._iterate(state))
        try:
            await joined.future
        except asyncio.CancelledError:
            if joined in state.batches:
                state.batches.remove(joined)
            raise
        finally:
            state.num_rows -= len(rows)
        return [
            Generation(TEXT, row.prompt_tokens, row.num_new_tokens, row.first_token_s,
                       row.last_token_s)
            for row in rows
        ]  # fmt: skip

    async def stop(self) -> None:
        """End what runs with RequestFailed."""
        workers, self._workers = self._workers, []
        for state in workers:
            if state.iterating is not None:
                state.iterating.cancel()
            for batch in state.batches:
                if not batch.future.done():
                    batch.future.set_exception(RequestFailed("the engine was stopped"))
            state.batches.clear()

    def describe(self) -> dict[str, str | int | float]:
        return {
            **super().describe(),
            "max_rows": self.max_rows,
            "prefill": (
                "whole prompts"
                if self.prefill_chunk_tokens is None
                else f"at most {self.prefill_chunk_tokens} tokens per iteration"
            ),
        }

    async def _iterate(self, state: _Worker) -> None:
        """Iterations, as long as there are rows."""
        loop = asyncio.get_running_loop()
        while state.batches:
            decoding: list[_Row] = []
            reading: list[_Row] = []
            for batch in state.batches:
                for row in batch.rows:
                    if row.unread:
                        reading.append(row)
                    elif row.num_tokens < row.num_new_tokens:
                        decoding.append(row)
            sizes = plan_prefill([row.unread for row in reading], self.prefill_chunk_tokens)
            seconds = self.step_s(len(decoding)) if decoding else self.base_s
            await asyncio.sleep(seconds + self.prefill_s_per_token * sum(sizes))
            now_s = loop.time()
            for row, size in zip(reading, sizes, strict=False):  # the others wait
                row.unread -= size
                if not row.unread:
                    row.first_token_s = row.last_token_s = now_s
                    row.num_tokens = 1
            for row in decoding:
                row.num_tokens += 1
                row.last_token_s = now_s
            still_open = []
            for batch in state.batches:
                if any(row.num_tokens < row.num_new_tokens for row in batch.rows):
                    still_open.append(batch)
                elif not batch.future.done():
                    batch.future.set_result(None)
            state.batches = still_open
        state.iterating = None
