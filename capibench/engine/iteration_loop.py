"""Carries batches from the event loop to the rows that decode in a thread, and answers back.

The thread runs iterations as long as there are rows and takes in what arrived between two of them;
with nothing to do it goes to sleep in its executor, so that nothing has to be woken or ended. One
lock guards the inbox; a batch's rows are touched by the thread alone, its future by the event loop
alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from threading import Lock

from capibench.engine.continuous_rows import ContinuousRows, Row
from capibench.engine.engine import Generation, GenerationRequest
from capibench.errors import RequestFailed


class _Batch:
    """What one call of `generate` waits for."""

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self.requests = list(requests)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Generation]] = self.loop.create_future()
        self.rows: list[Row] = []
        self.given_up = False  # its caller was cancelled; set by the event loop, read by the thread

    def end(self, outcome: list[Generation] | Exception) -> None:
        """Called in the thread, once."""
        try:
            self.loop.call_soon_threadsafe(self._end, outcome)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return

    def _end(self, outcome: list[Generation] | Exception) -> None:
        if self.future.done():  # given up
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class IterationLoop:
    """One worker.

    Args:
        rows: touched by the thread only.
        thread: an executor with one thread.
        encode: token ids of a request, or RequestFailed; called in the thread.
        decode: text of token ids; called in the thread.
    """

    def __init__(
        self,
        rows: ContinuousRows,
        thread: Executor,
        encode: Callable[[GenerationRequest], list[int]],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._rows = rows
        self._thread = thread
        self._encode = encode
        self._decode = decode
        self._lock = Lock()
        self._inbox: list[_Batch] = []
        self._running = False
        self._stopped = False
        self._open: list[_Batch] = []  # batches whose rows are computed; the thread's own

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answers in request order. What is computed for others goes on meanwhile.

        Raises:
            RequestFailed: a request cannot be served, an iteration failed while the batch took
                part in it, or the engine was stopped.
        """
        if not requests:
            return []
        batch = _Batch(requests)
        with self._lock:
            if self._stopped:
                raise RequestFailed("the engine was stopped")
            self._inbox.append(batch)
            if not self._running:
                self._running = True
                self._thread.submit(self._run)
        try:
            return await batch.future
        except asyncio.CancelledError:
            batch.given_up = True
            raise

    def stop(self) -> None:
        """Take no more batches and end those that run with RequestFailed, after the iteration
        that is under way."""
        with self._lock:
            self._stopped = True

    def _run(self) -> None:
        while self._take_in():
            try:
                self._let_go()
                if self._rows and self._rows.step(self._open[0].loop.time):
                    self._answer()
            except Exception as error:  # noqa: BLE001 - whatever it is, callers wait for it
                # Every row took part in this iteration, and none of them is whole now.
                self._fail_all(
                    f"an iteration of the engine failed: {type(error).__name__}: {error}"
                )

    def _take_in(self) -> bool:
        """Whether there may be something to do. If not, the next batch starts the thread anew."""
        with self._lock:
            arrived, self._inbox = self._inbox, []
            self._running = bool(arrived or self._open) and not self._stopped
            running, stopped = self._running, self._stopped
        if stopped:
            self._open += arrived
            self._fail_all("the engine was stopped")
            return False
        for batch in arrived:
            self._admit(batch)
        return running

    def _admit(self, batch: _Batch) -> None:
        try:
            prompts = [self._encode(request) for request in batch.requests]
        except Exception as error:  # noqa: BLE001 - it belongs to this batch, not to the others
            batch.end(error)
            return
        batch.rows = [
            Row(prompt, request.max_new_tokens)
            for prompt, request in zip(prompts, batch.requests, strict=True)
        ]
        for row in batch.rows:
            self._rows.add(row)
        self._open.append(batch)

    def _let_go(self) -> None:
        given_up = [batch for batch in self._open if batch.given_up]
        if given_up:
            self._rows.drop(row for batch in given_up for row in batch.rows)
            self._open = [batch for batch in self._open if not batch.given_up]

    def _answer(self) -> None:
        still_open = []
        for batch in self._open:
            if all(row.done for row in batch.rows):
                batch.end([self._generation(row) for row in batch.rows])
            else:
                still_open.append(batch)
        self._open = still_open

    def _generation(self, row: Row) -> Generation:
        return Generation(
            text=self._decode(row.tokens),
            prompt_tokens=len(row.prompt),
            output_tokens=len(row.tokens),
            first_token_s=row.first_token_s,
            last_token_s=row.last_token_s,
        )

    def _fail_all(self, reason: str) -> None:
        self._rows.clear()
        failed, self._open = self._open, []
        for batch in failed:
            batch.end(RequestFailed(reason))  # one each: an exception belongs to one caller
