"""Several copies of an engine, each in a process of its own with its own threads and weights.

Threads of one process share the interpreter, so that several decode loops in it slow each other
down; processes do not. Replicas with different numbers of threads differ in speed, which is what
balancing by expected completion is about.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from capibench.config import OWN_PREFIX, node_of
from capibench.engine.engine import Engine, Generation, GenerationRequest
from capibench.engine.prompts import check_room, encode_prompt
from capibench.engine.replicas_messages import Begin, Ready
from capibench.engine.replicas_worker import Replica
from capibench.errors import ConfigError
from capibench.model.recipe import ModelFacts, ModelRecipe

if TYPE_CHECKING:
    from capibench.model.language_model import LanguageModel


@dataclass
class Replicas:
    """As many `replica`s as `threads_per_replica` has numbers; worker i is the i-th.

    Each process loads the model itself. A process that ends by itself is started again
    (`capibench.engine.replicas_worker` says what becomes of its batches), and none outlives the
    run. This process holds the tokenizer alone, to count tokens.
    """

    threads_per_replica: list[int]
    pin_cores: bool
    stop_timeout_s: float
    replica: Engine

    modeled: ClassVar[bool] = False

    _recipe: ModelRecipe | None = field(init=False, repr=False, default=None)
    _replicas: list[Replica] = field(init=False, repr=False, default_factory=list)
    _cores: list[list[int] | None] = field(init=False, repr=False, default_factory=list)
    _tokenizer: Any = field(init=False, repr=False, default=None)
    _num_positions: int | None = field(init=False, repr=False, default=None)
    _facts: ModelFacts | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        threads = self.threads_per_replica
        if not threads or min(threads) < 1:
            raise ValueError(
                f"threads_per_replica: got {threads}; expected a number of threads, at least 1, "
                "for each replica"
            )
        if not 0 < self.stop_timeout_s < float("inf"):
            raise ValueError(f"stop_timeout_s: got {self.stop_timeout_s}; expected more than 0")
        if self.replica.modeled:
            raise ValueError(
                f"replica: got {type(self.replica).__name__}, which states its time instead of "
                "working; expected an engine that computes"
            )
        if self.replica.num_workers != 1:
            raise ValueError(
                f"replica.num_workers: got {self.replica.num_workers}; expected 1: each replica "
                "is one worker"
            )

    @property
    def num_workers(self) -> int:
        return len(self.threads_per_replica)

    @property
    def needs_model(self) -> bool:
        return self.replica.needs_model

    @property
    def joins_running(self) -> bool:
        return self.replica.joins_running

    @property
    def max_rows(self) -> int | None:
        """Most rows that the engine inside runs at once; None: it does not say."""
        return getattr(self.replica, "max_rows", None)

    @property
    def kv_cache(self) -> str:
        """That of the engine inside: its quality is measured where it rounds."""
        return str(getattr(self.replica, "kv_cache", "native"))

    def will_load(self, recipe: ModelRecipe) -> None:
        self._recipe = recipe

    def model_facts(self) -> ModelFacts:
        """Those of the first replica; the load counts until the last one was ready."""
        assert self._facts is not None, "start() comes first, and needs a model"
        return self._facts

    async def start(self, model: LanguageModel | None) -> None:
        """Start all processes side by side; none is left where one cannot be started.

        Raises:
            ConfigError: a replica refuses the model, or there are too few cores to pin to.
            RunFailed: a process ended before it was ready.
        """
        assert model is None, "will_load() says what to load"
        assert (self._recipe is not None) == self.needs_model, "will_load() comes first"
        self._cores = self._assign_cores()
        self._replicas = [
            Replica(f"replica {i}", self._begin(i), self.stop_timeout_s)
            for i in range(self.num_workers)
        ]
        try:
            ready = await asyncio.gather(*(replica.start() for replica in self._replicas))
        except BaseException:
            await self.stop()
            raise
        if self._recipe is not None:
            self._tokenizer = self._recipe.source.load_tokenizer()
            self._num_positions = ready[0].num_positions
            self._facts = _facts(ready)

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        """As the engine inside counts them."""
        if self._tokenizer is None:
            return self.replica.count_tokens(prompt, max_new_tokens)
        num_tokens = len(encode_prompt(self._tokenizer, prompt))
        check_room(num_tokens, max_new_tokens, self._num_positions)
        return num_tokens

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Generate for all of `batch` in the process of `worker`.

        Raises:
            RequestFailed: the engine inside refused the batch or failed in it.
            WorkerBroken: its process ended meanwhile, or could not be started again.
        """
        return await self._replicas[worker].generate(batch)

    async def stop(self) -> None:
        """End all processes; one that does not end in time is killed."""
        await asyncio.gather(*(replica.stop() for replica in self._replicas))

    def describe(self) -> dict[str, str | int | float]:
        """What the engines inside say, where they differ under `<name>.<replica>`; and the memory
        that each process shares with no other: what one more replica costs."""
        described: dict[str, str | int | float] = {}
        each = [replica.description for replica in self._replicas]
        for name in dict.fromkeys(name for description in each for name in description):
            values = [description.get(name) for description in each]
            if all(value == values[0] for value in values):
                described[name] = each[0][name]
            else:
                described |= {f"{name}.{i}": v for i, v in enumerate(values) if v is not None}
        described["workers"] = self.num_workers
        described["worker_kind"] = "process, with weights of its own"
        described["restarts"] = sum(replica.num_restarts for replica in self._replicas)
        for i, replica in enumerate(self._replicas):
            cores = self._cores[i]
            described[f"threads.{i}"] = self.threads_per_replica[i]
            described[f"cores.{i}"] = "any" if cores is None else ", ".join(map(str, cores))
            with contextlib.suppress(psutil.Error):  # it has just ended
                if replica.pid is not None:
                    memory = psutil.Process(replica.pid).memory_full_info()
                    described[f"own_bytes.{i}"] = int(memory.uss)
        return described

    def _begin(self, replica: int) -> Begin:
        engine = node_of(self.replica)
        recipe = None if self._recipe is None else self._recipe.to_nodes()
        return Begin(
            engine=engine,
            recipe=recipe,
            plugins=sorted(set(_plugins(engine)) | set(_plugins(recipe or {}))),
            num_threads=self.threads_per_replica[replica],
            cores=self._cores[replica],
        )

    def _assign_cores(self) -> list[list[int] | None]:
        """Different cores for every replica, one for each of its threads."""
        if not self.pin_cores:
            return [None] * self.num_workers
        if sys.platform != "linux":
            raise ConfigError(
                "engine.pin_cores", f"{sys.platform} cannot pin processes to cores; expected false"
            )
        free = sorted(os.sched_getaffinity(0))
        wanted = sum(self.threads_per_replica)
        if wanted > len(free):
            raise ConfigError(
                "engine.pin_cores",
                f"{wanted} threads would need as many cores, and this process may use {len(free)}; "
                "expected false, or fewer threads_per_replica",
            )
        cores = iter(free)
        return [[next(cores) for _ in range(n)] for n in self.threads_per_replica]


def _facts(ready: Sequence[Ready]) -> ModelFacts:
    facts = [ModelFacts(**report.facts) for report in ready if report.facts is not None]
    return replace(facts[0], load_s=max(fact.load_s for fact in facts))


def _plugins(value: Any) -> Iterator[str]:
    """Modules outside the package that configuration nodes name: they were allowed when the
    components were built here, and are so in the replicas."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str) and not target.startswith(OWN_PREFIX):
            yield target.rpartition(".")[0]
        for item in value.values():
            yield from _plugins(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _plugins(item)
