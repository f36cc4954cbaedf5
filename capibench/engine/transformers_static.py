"""Batches run to completion on Transformers: the plain engine that every other is compared with.

All requests of a batch start together; a row that has its tokens is dropped from the batch, but
its place is not given to a waiting request before the whole batch is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from capibench.clock import compute_thread
from capibench.engine.decoding import KvCache, count_int8_layers, decode, unsupported_layers
from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.kv_bytes import KvBytes, count_kv_bytes
from capibench.engine.prompts import check_room, count_positions, encode_prompt
from capibench.errors import ConfigError, RequestFailed
from capibench.model.language_model import LanguageModel


@dataclass
class TransformersStatic:
    """Greedy decoding on `num_workers` threads that share one set of weights.

    A batch belongs to one worker; with more workers than cores they only slow each other down.
    """

    num_workers: int
    kv_cache: KvCache

    modeled: ClassVar[bool] = False
    needs_model: ClassVar[bool] = True
    joins_running: ClassVar[bool] = False

    _model: LanguageModel | None = field(init=False, repr=False)
    _workers: list[ThreadPoolExecutor] = field(init=False, repr=False)
    _threads_per_worker: int = field(init=False, repr=False)
    _kv_bytes: KvBytes | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers: got {self.num_workers}; expected at least 1")
        self._model = None
        self._workers = []
        self._threads_per_worker = 0
        self._kv_bytes = None

    async def start(self, model: LanguageModel | None) -> None:
        """Take the loaded model; one thread per worker, so that the event loop never waits.

        Raises:
            ConfigError: the model's layers cannot be batched, or none of them can hold its past
                as int8.
        """
        assert model is not None, "the runner loads a model for an engine that needs one"
        unsupported = unsupported_layers(model.module.config)
        if unsupported:
            raise ConfigError(
                "model",
                f"layers of kind {', '.join(sorted(unsupported))} cannot be batched by this "
                "engine; expected a decoder with full or sliding-window attention",
            )
        if self.kv_cache == "int8":
            count_int8_layers(model.module.config)  # refuses a model that has none
        self._model = model
        self._workers = [compute_thread(f"engine-{worker}") for worker in range(self.num_workers)]
        loop = asyncio.get_running_loop()
        self._threads_per_worker = await loop.run_in_executor(
            self._workers[0], torch.get_num_threads
        )
        self._kv_bytes = await loop.run_in_executor(
            self._workers[0], count_kv_bytes, model.module, self.kv_cache
        )

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        """Tokens of `prompt`; RequestFailed when it and the new tokens exceed the positions."""
        num_tokens = len(self._encode(prompt))
        self._check_room(num_tokens, max_new_tokens)
        return num_tokens

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Generate for all of `batch`.

        Raises:
            RequestFailed: a request of the batch does not fit into the model's positions, or asks
                for no tokens; raised before any work is done.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._workers[worker], self._generate, list(batch), loop.time
        )

    async def stop(self) -> None:
        for worker in self._workers:
            worker.shutdown(wait=True)
        self._workers = []
        self._model = None

    def describe(self) -> dict[str, str | int | float]:
        model = self._loaded
        assert self._kv_bytes is not None, "start() counts them"
        return {
            "attention": str(model.module.config._attn_implementation),
            "dtype": model.dtype,
            "device": str(model.module.device),
            "workers": self.num_workers,
            "threads_per_worker": self._threads_per_worker,
            "decoding": "greedy, own loop, reserved key-value cache, finished rows dropped",
            "kv_cache": self._describe_kv_cache(model),
            "kv_bytes_per_token": self._kv_bytes.held,
            "kv_bytes_per_token_native": self._kv_bytes.native,
            "kv_transient_bytes_per_token": self._kv_bytes.transient,
        }

    def _describe_kv_cache(self, model: LanguageModel) -> str:
        if self.kv_cache == "native":
            return f"{model.dtype}, read where it lies"
        held, layers = count_int8_layers(model.module.config)
        return (
            f"int8 with a {model.dtype} scale per position and head in {held} of {layers} layers; "
            f"every step widens the past to {model.dtype}, one layer at a time"
        )

    @property
    def _loaded(self) -> LanguageModel:
        assert self._model is not None, "start() comes first"
        return self._model

    def _encode(self, prompt: str) -> list[int]:
        return encode_prompt(self._loaded.tokenizer, prompt)

    def _check_room(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        num_positions = count_positions(self._loaded.module.config)
        check_room(num_prompt_tokens, num_new_tokens, num_positions)

    def _generate(
        self, batch: list[GenerationRequest], now: Callable[[], float]
    ) -> list[Generation]:
        """In the worker's thread. `now` is the event loop's clock, which any thread may read."""
        prompts = [self._encode(request.prompt) for request in batch]
        budgets = [request.max_new_tokens for request in batch]
        for prompt, budget in zip(prompts, budgets, strict=True):
            if budget < 1:
                raise RequestFailed(f"max_new_tokens is {budget}; expected at least 1")
            self._check_room(len(prompt), budget)
        model = self._loaded
        rows = decode(model.module, prompts, budgets, now, self.kv_cache)
        return [
            Generation(
                text=model.tokenizer.decode(row.tokens, skip_special_tokens=False),
                prompt_tokens=len(prompt),
                output_tokens=len(row.tokens),
                first_token_s=row.first_token_s,
                last_token_s=row.last_token_s,
            )
            for prompt, row in zip(prompts, rows, strict=True)
        ]
