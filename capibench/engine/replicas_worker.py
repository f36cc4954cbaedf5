"""One replica as the run's process sees it: started, given batches, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import count

from capibench.engine.engine import Generation, GenerationRequest
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
from capibench.errors import ConfigError, DataError, RequestFailed, RunFailed, WorkerBroken

_PROCESS = "capibench.engine.replicas_process"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_log = logging.getLogger("capibench")


class Replica:
    """A worker process, kept alive.

    When it ends by itself, the batches that it was working on fail with `WorkerBroken`, and it is
    started again at once; batches sent meanwhile wait for that. If it cannot be started again,
    they fail too, and the next batch tries once more. So a worker that dies whenever it is
    started costs its batches, but never hangs them, and a batch never moves to another worker.

    Args:
        name: by which errors call it.
        begin: what it is told to load.
        stop_timeout_s: how long it may take to end before it is killed.
    """

    def __init__(self, name: str, begin: Begin, stop_timeout_s: float) -> None:
        self._name = name
        self._begin = begin
        self._stop_timeout_s = stop_timeout_s
        self._starting: asyncio.Task[Ready] | None = None  # under way, or successful
        self._listening: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None  # the latest
        self._connection: Connection | None = None  # None: nobody there to work
        self._pending: dict[int, asyncio.Future[Sequence[Generation]]] = {}
        self._tickets = count()
        self._stopping = False
        self.num_restarts = 0
        self.description: dict[str, str | int | float] = {}

    @property
    def pid(self) -> int | None:
        """Of the process that is ready to work; None while there is none."""
        return None if self._connection is None or self._process is None else self._process.pid

    async def start(self) -> Ready:
        """Start the process, unless it was started, and wait until it has loaded.

        Raises:
            ConfigError, DataError: as the process reported it.
            RunFailed: it ended, or whatever else went wrong in it.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._launch())
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)  # others wait for the same start

    async def generate(self, batch: Sequence[GenerationRequest]) -> list[Generation]:
        """The answers to `batch`, in its order.

        Raises:
            RequestFailed: the engine of the replica refused the batch or failed in it.
            WorkerBroken: the process ended meanwhile, or could not be started again.
        """
        if self._stopping:
            raise RequestFailed(f"{self._name} was stopped")
        try:
            await self.start()
        except (ConfigError, DataError, RunFailed) as error:
            raise WorkerBroken(
                f"{self._name} is broken and cannot be started again: {error}"
            ) from error
        if self._connection is None:  # it ended before this batch had its turn
            raise WorkerBroken(f"{self._name} is broken: it ended just after it was started")
        ticket = next(self._tickets)
        future = asyncio.get_running_loop().create_future()
        self._pending[ticket] = future
        try:
            self._connection.send(Work(ticket, list(batch)))
            return list(await future)
        except TypeError as error:
            raise RequestFailed("a prompt is not valid Unicode; expected no surrogates") from error
        finally:
            self._pending.pop(ticket, None)

    async def stop(self) -> None:
        """End the process: in good order where it is idle, by force where it does not end in
        time. What it was working on fails. May be called at any time, also twice."""
        self._stopping = True
        _fail(self._pending, RequestFailed(f"{self._name} was stopped"))
        if self._connection is not None:
            self._connection.send(Stop())
        elif self._process is not None:
            self._process.kill()
        ending = {task for task in (self._starting, self._listening) if task is not None}
        if ending:
            _, late = await asyncio.wait(ending, timeout=self._stop_timeout_s)
            if late and self._process is not None:
                self._process.kill()
            await asyncio.wait(ending)

    def _started(self, task: asyncio.Task[Ready]) -> None:
        """Looks at what came of a start, which nobody may be waiting for."""
        if task.cancelled() or task.exception() is not None:
            self._starting = None
            if self.num_restarts:
                _log.error("%s could not be started again", self._name)

    async def _launch(self) -> Ready:
        begun_s = asyncio.get_running_loop().time()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", _PROCESS, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # standard output belongs to the run's one JSON line
                    env=self._environment(),
                )
            except OSError as error:
                ours.close()
                raise RunFailed(f"{self._name}: no process could be started: {error}") from error
        self._process = process
        connection: Connection | None = None
        try:
            connection = Connection(*await asyncio.open_connection(sock=ours))
            connection.send(self._begin)
            first = await connection.receive()
            if not isinstance(first, Ready):
                connection.close()
                raise self._refusal(first, await self._reap(process))
            self._check_clock(begun_s, first.now_s)
        except BaseException:
            (ours if connection is None else connection).close()
            process.kill()
            process.wait()
            raise
        self._connection = connection
        self.description = dict(first.description)
        self._listening = asyncio.create_task(self._listen(process, connection))
        return first

    def _environment(self) -> dict[str, str]:
        threads = str(self._begin.num_threads)
        return {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, threads),
            "TOKENIZERS_PARALLELISM": "false",
            # The same packages, wherever the run found them.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def _check_clock(self, begun_s: float, now_s: float) -> None:
        """Token times are read in the replica and compared with times of this process: both must
        be of one clock (on Linux CLOCK_MONOTONIC is the whole system's)."""
        if not begun_s <= now_s <= asyncio.get_running_loop().time():
            raise RunFailed(
                f"{self._name} has another clock: it read {now_s:.6f} s, not between its start at "
                f"{begun_s:.6f} s and now; expected a system whose monotonic clock is common to "
                "its processes, and time=real"
            )

    def _refusal(self, message: object, ended: str) -> Exception:
        if not isinstance(message, Refused):
            return RunFailed(f"{self._name} {ended} before it was ready")
        if message.error in ("ConfigError", "ImpossibleCombination"):
            return ConfigError(message.key, message.problem)
        if message.error == "DataError":
            return DataError(message.problem)
        return RunFailed(f"{self._name}: {message.error}: {message.problem}")

    async def _listen(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Hand out what arrives until the process ends; then see to its successor."""
        ended = "broke its connection"
        orphans = self._pending
        try:
            await self._hand_out(connection)
            self._leave(connection)
            ended = await self._reap(process)
        finally:
            self._leave(connection)
            if process.poll() is None:  # this task failed or was cancelled
                process.kill()
                process.wait()
            _fail(orphans, WorkerBroken(f"{self._name} is broken: its process {ended}"))
        if not self._stopping:
            _log.error("%s %s; it is started again", self._name, ended)
            self.num_restarts += 1
            with contextlib.suppress(ConfigError, DataError, RunFailed):  # a batch will hear it
                await self.start()

    def _leave(self, connection: Connection) -> None:
        """From here on a batch waits for the successor, while this process is buried."""
        connection.close()
        if self._connection is connection:
            self._pending, self._connection, self._starting = {}, None, None

    async def _hand_out(self, connection: Connection) -> None:
        while (message := await connection.receive()) is not None:
            if isinstance(message, Described):
                self.description = dict(message.description)
                continue
            assert isinstance(message, Done | Failed), message
            future = self._pending.get(message.ticket)
            if future is None or future.done():  # its batch was cancelled
                continue
            if isinstance(message, Done):
                future.set_result(message.answers)
            else:
                future.set_exception(RequestFailed(message.problem))

    async def _reap(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the end of a process that has closed its connection; how it ended, in words."""
        wait = asyncio.get_running_loop().run_in_executor
        try:
            code = await wait(None, process.wait, self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = await wait(None, process.wait)
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit status {code}"


def _fail(
    pending: Mapping[int, asyncio.Future[Sequence[Generation]]], error: RequestFailed
) -> None:
    for future in pending.values():
        if not future.done():
            future.set_exception(error)
