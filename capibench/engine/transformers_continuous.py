"""Iteration-level batching on Transformers: requests join and leave between decode steps.

Transformers has continuous batching of its own (`generate_batch`). It was not taken: it gives no
time per token, keeps no int8 past, and reads every row's past out of pages into a copy for every
layer of every step. The model code is the same here; rows, slots and attention are ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch

from capibench.clock import compute_thread
from capibench.engine.attention_check import check_attention
from capibench.engine.continuous_rows import ContinuousRows
from capibench.engine.decoding import KvCache, count_int8_layers
from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.iteration_loop import IterationLoop
from capibench.engine.prefix_cache import BLOCK_TOKENS, PrefixCache
from capibench.engine.prompts import check_room, count_positions, encode_prompt, encode_request
from capibench.engine.slots import Int8Slots, KvShape, NativeSlots, Slots
from capibench.errors import ConfigError, RequestFailed
from capibench.model.language_model import LanguageModel


@dataclass
class TransformersContinuous:
    """Greedy decoding on `num_workers` threads that share one set of weights and one prefix cache.

    `generate` may be called again for a worker while it runs; what it brings takes part from the
    next iteration on. The answers of one call come together, so requests that are to leave one by
    one are handed over one by one.
    """

    num_workers: int
    max_rows: int
    kv_cache: KvCache
    prefill_chunk_tokens: int | None
    prefix_cache_bytes: int | None

    modeled: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    joins_running: ClassVar[bool] = True

    _model: LanguageModel | None = field(init=False, repr=False)
    _attention: str = field(init=False, repr=False)
    _prefixes: PrefixCache | None = field(init=False, repr=False)
    _threads: list[ThreadPoolExecutor] = field(init=False, repr=False)
    _loops: list[IterationLoop] = field(init=False, repr=False)
    _rows: list[ContinuousRows] = field(init=False, repr=False)
    _slots: list[Slots] = field(init=False, repr=False)
    _in_flight: list[int] = field(init=False, repr=False)
    _threads_per_worker: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("num_workers", "max_rows", "prefill_chunk_tokens", "prefix_cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}; expected at least 1")
        self._model = None
        self._attention = ""
        self._prefixes = None
        self._threads, self._loops, self._rows, self._slots = [], [], [], []
        self._in_flight = []
        self._threads_per_worker = 0

    async def start(self, model: LanguageModel | None) -> None:
        """Take the loaded model and check that its rows can be packed; one thread per worker.

        Raises:
            ConfigError: the model's attention is of a kind that cannot, or a knob does not fit it.
        """
        assert model is not None, "the runner loads a model for an engine that needs one"
        if self.kv_cache == "int8":
            held, layers = count_int8_layers(model.module.config)
            if held < layers:
                raise ConfigError(
                    "engine.kv_cache",
                    f"got 'int8', but {layers - held} of the model's {layers} layers have a "
                    "sliding window, which this engine keeps in the model's precision only; "
                    "expected native",
                )
        thread = compute_thread("engine-0")
        loop = asyncio.get_running_loop()
        try:
            shape, self._attention = await loop.run_in_executor(
                thread, check_attention, model.module
            )
            self._threads_per_worker = await loop.run_in_executor(thread, torch.get_num_threads)
            if self.prefix_cache_bytes is not None:
                self._prefixes = self._open_prefixes(shape, self.prefix_cache_bytes)
        except BaseException:
            thread.shutdown()
            raise
        self._model = model
        self._threads = [
            thread, *(compute_thread(f"engine-{i}") for i in range(1, self.num_workers))
        ]  # fmt: skip
        slots = NativeSlots if self.kv_cache == "native" else Int8Slots
        self._slots = [slots(shape) for _ in self._threads]
        for store in self._slots:
            store.reserve(1, 1)
        self._rows = [
            ContinuousRows(model.module, store, self.prefill_chunk_tokens, self._prefixes)
            for store in self._slots
        ]
        num_positions = count_positions(model.module.config)
        self._loops = [
            IterationLoop(
                rows,
                worker,
                partial(encode_request, model.tokenizer, num_positions=num_positions),
                partial(model.tokenizer.decode, skip_special_tokens=False),
            )
            for rows, worker in zip(self._rows, self._threads, strict=True)
        ]
        self._in_flight = [0] * self.num_workers

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        """Tokens of `prompt`; RequestFailed when it and the new tokens exceed the positions."""
        num_tokens = len(encode_prompt(self._loaded.tokenizer, prompt))
        check_room(num_tokens, max_new_tokens, count_positions(self._loaded.module.config))
        return num_tokens

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Generate for all of `batch`, from the next iteration of `worker` on.

        Raises:
            RequestFailed: `max_rows` would be exceeded; a request does not fit into the model's
                positions or asks for no tokens (both before any work is done); an iteration
                failed while the batch took part in it; or the engine was stopped.
        """
        if not self._loops:
            raise RequestFailed("the engine is not running")
        in_flight = self._in_flight
        num_rows = in_flight[worker] + len(batch)
        if num_rows > self.max_rows:
            raise RequestFailed(
                f"{num_rows} requests at once on worker {worker} exceed engine.max_rows="
                f"{self.max_rows}; expected a batching.strategy.max_batch_size of at most that"
            )
        in_flight[worker] = num_rows
        try:
            return await self._loops[worker].generate(batch)
        finally:
            in_flight[worker] -= len(batch)

    async def stop(self) -> None:
        """End what runs with RequestFailed, wait for the iterations under way, free the rest."""
        for worker in self._loops:
            worker.stop()
        for thread in self._threads:
            thread.shutdown(wait=True)
        if self._model is not None:
            self._model.module.set_attn_implementation(self._attention)
        self._threads, self._loops, self._rows, self._slots = [], [], [], []
        self._in_flight = []
        self._prefixes = None
        self._model = None

    def describe(self) -> dict[str, str | int | float]:
        model = self._loaded
        shape = self._slots[0].shape
        native = shape.empty(1).nbytes
        num_iterations = sum(rows.num_iterations for rows in self._rows)
        described: dict[str, str | int | float] = {
            "attention": f"{self._attention}, packed: no padding between prompts",
            "dtype": model.dtype,
            "device": str(model.module.device),
            "workers": self.num_workers,
            "threads_per_worker": self._threads_per_worker,
            "decoding": "greedy, own loop, rows join and leave between steps",
            "max_rows": self.max_rows,
            "prefill": (
                "whole prompts"
                if self.prefill_chunk_tokens is None
                else f"at most {self.prefill_chunk_tokens} tokens per iteration"
            ),
            "kv_cache": (
                f"{model.dtype}, read where it lies"
                if self.kv_cache == "native"
                else f"int8 with a {model.dtype} scale per position and head; every step widens "
                f"the past to {model.dtype}, one layer at a time; prompts are read in {model.dtype}"
            ),
            "kv_bytes_per_token": self._slots[0].bytes_per_token,
            "kv_bytes_per_token_native": native,
            "kv_transient_bytes_per_token": (
                0 if self.kv_cache == "native" else native // shape.layers
            ),
            "kv_reserved_bytes": sum(slots.nbytes for slots in self._slots),
            "iterations": num_iterations,
        }
        if num_iterations:
            decoded = sum(rows.num_decoded for rows in self._rows)
            described["mean_decoding_rows"] = decoded / num_iterations
            prefilled = sum(rows.num_prefilled for rows in self._rows)
            described["mean_prefill_tokens"] = prefilled / num_iterations
        if self._prefixes is not None:
            described["prefix_cache_bytes"] = self._prefixes.nbytes
            described["prefix_prompt_tokens"] = self._prefixes.num_prompt_tokens
            described["prefix_reused_tokens"] = self._prefixes.num_reused_tokens
            if self._prefixes.num_prompt_tokens:
                described["prefix_hit_rate"] = self._prefixes.hit_rate
        return described

    @property
    def _loaded(self) -> LanguageModel:
        assert self._model is not None, "start() comes first"
        return self._model

    @staticmethod
    def _open_prefixes(shape: KvShape, max_bytes: int) -> PrefixCache:
        block_bytes = shape.empty(BLOCK_TOKENS).nbytes
        if max_bytes < block_bytes:
            raise ConfigError(
                "engine.prefix_cache_bytes",
                f"got {max_bytes}; expected at least {block_bytes}, one block of {BLOCK_TOKENS} "
                "tokens of this model (or null)",
            )
        return PrefixCache(max_bytes)
