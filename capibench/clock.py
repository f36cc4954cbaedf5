"""The two clocks of a run: the ordinary event loop, and one whose time is virtual.

Components never ask the operating system for the time; they ask the running loop. Under
`VirtualTimeLoop` a wait costs nothing: when no callback is ready, `select()` jumps the clock to
the next timer. A run is then a discrete-event simulation that executes the very same policies.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """A selector that never waits: it polls, and reports the wait it was asked for as elapsed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise RuntimeError(
                "virtual time stands still: nothing is scheduled, yet the run is not finished "
                "(a component waits for something outside the loop, such as a thread)"
            )
        self.now_s += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and jumps from timer to timer."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now_s


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` under virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class RealTime:
    """`time=real`: the ordinary loop. Every compute library is pinned to `num_threads` threads."""

    num_threads: int

    def __post_init__(self) -> None:
        if self.num_threads < 1:
            raise ValueError(f"num_threads: got {self.num_threads}; expected at least 1")

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            return runner.run(main)


def _precise_loop() -> asyncio.AbstractEventLoop:
    """epoll, the default, rounds every wait up to a whole millisecond, by which each request
    would be sent late; select() waits to the microsecond."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@dataclass(frozen=True)
class VirtualTime:
    """`time=virtual`: a discrete-event simulation under the same policies."""

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return run_virtual(main)


@runtime_checkable
class Modeled(Protocol):
    """A component that states how long its real counterpart takes, instead of computing."""

    def service_s(self, num_items: int) -> float:
        """Seconds that a call with `num_items` items takes."""


def compute_thread(name: str) -> ThreadPoolExecutor:
    """One worker thread for computing, which gives way to the event loop.

    The loop's thread sleeps until a request is due and must run at that moment. Where computing
    threads fill all cores, the scheduler would let it wait for the rest of their time slice,
    milliseconds by which requests would be sent late. Lowering one's own priority needs no rights.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=_give_way)


def _give_way() -> None:
    if sys.platform == "linux":  # where priorities belong to threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Compute:
    """Runs a component's blocking calls without blocking the loop: one worker thread each.

    A modeled component sleeps its stated time on the loop's clock instead, so that the same
    pipeline runs under both clocks.
    """

    def __init__(self, name: str) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._name = name

    async def call(self, component: object, function: Callable[..., T], items: Any) -> T:
        """Call `function(items)`, where `items` is sized, on behalf of `component`."""
        if isinstance(component, Modeled):
            await asyncio.sleep(component.service_s(len(items)))
            return function(items)
        if self._executor is None:
            self._executor = compute_thread(self._name)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, items)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)
