"""A replica's own process: `python -m capibench.engine.replicas_process FD`.

FD is its end of a socket to the run's process. The first message says what to load; then batches
come in and answers go out. When the socket ends, so does this process, whatever it is doing: it
never outlives the run that it works for.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from capibench.config import build
from capibench.engine.engine import Engine
from capibench.engine.replicas_messages import (
    Begin,
    Connection,
    Described,
    Done,
    Failed,
    Ready,
    Refused,
    Stop,
    Work,
)
from capibench.errors import ConfigError, RequestFailed
from capibench.measure.memory import reset_peak

if TYPE_CHECKING:
    from capibench.model.recipe import ServedModel

SWITCH_INTERVAL_S = 0.00005  # as in the run's process: its loop waits this long for the lock
_ORPHANED_EXIT = 4
_log = logging.getLogger("capibench")


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return asyncio.run(_serve(socket.socket(fileno=int(arguments[0]))))


async def _serve(end: socket.socket) -> int:
    connection = Connection(*await asyncio.open_connection(sock=end))
    begin = await connection.receive()
    if not isinstance(begin, Begin):
        return _ORPHANED_EXIT
    return await _Server(connection, begin).run()


class _Server:
    """Loads, then serves batches side by side; the reading of messages never waits for either."""

    def __init__(self, connection: Connection, begin: Begin) -> None:
        self._connection = connection
        self._begin = begin
        self._engine: Engine | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._described: dict[str, str | int | float] = {}

    async def run(self) -> int:
        self._spawn(self._start())
        while True:
            message = await self._connection.receive()
            if isinstance(message, Work):
                self._spawn(self._work(message))
            elif isinstance(message, Stop) and self._engine is not None and not self._tasks:
                await self._engine.stop()
                return 0
            else:
                # The run is gone, or wants no more of what is under way; a thread that loads or
                # computes would keep an orderly exit waiting.
                os._exit(0 if isinstance(message, Stop) else _ORPHANED_EXIT)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self) -> None:
        try:
            self._connection.send(await self._load())
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must hear of it
            key, problem = "", str(error)
            if isinstance(error, ConfigError):
                key, problem = error.key, error.problem
            else:
                _log.error("%s", traceback.format_exc())
            self._connection.send(Refused(type(error).__name__, key, _printable(problem)))

    async def _load(self) -> Ready:
        if self._begin.cores is not None:
            os.sched_setaffinity(0, self._begin.cores)  # before any thread: all of them inherit it
        # In a thread, so that the end of the run is noticed while gigabytes are read.
        engine, served = await asyncio.to_thread(_build, self._begin)
        facts, num_positions = None, None
        if served is not None:
            from capibench.engine.prompts import count_positions

            facts = asdict(served.facts)
            num_positions = count_positions(served.model.module.config)
        await engine.start(None if served is None else served.model)
        self._engine, self._described = engine, engine.describe()
        gc.collect()
        gc.freeze()  # as in the run's process: what was loaded stays
        reset_peak()
        now_s = asyncio.get_running_loop().time()
        return Ready(now_s, num_positions, facts, self._described)

    async def _work(self, work: Work) -> None:
        assert self._engine is not None, "the run sends work after it has heard that we are ready"
        try:
            answers = await self._engine.generate(work.batch, worker=0)
            self._connection.send(Done(work.ticket, answers))
        except RequestFailed as error:
            self._connection.send(Failed(work.ticket, _printable(str(error))))
        except Exception as error:  # noqa: BLE001 - it belongs to the batch's callers
            _log.error("%s", traceback.format_exc())
            problem = _printable(f"{type(error).__name__}: {error}")
            self._connection.send(Failed(work.ticket, problem))
        if len(self._tasks) == 1:  # this one: nobody waits for what comes now
            self._describe()

    def _describe(self) -> None:
        assert self._engine is not None
        description = self._engine.describe()
        if description != self._described:
            self._described = description
            self._connection.send(Described(description))


def _build(begin: Begin) -> tuple[Engine, ServedModel | None]:
    served = None
    if begin.recipe is not None:
        import torch  # here: an engine without a model starts without it

        from capibench.model.recipe import ModelRecipe

        torch.set_num_threads(begin.num_threads)
        served = ModelRecipe.from_nodes(begin.recipe, begin.plugins).load()
    return build(begin.engine, "engine.replica", begin.plugins), served


def _printable(text: str) -> str:
    """`text` as valid Unicode, which every message must be."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
