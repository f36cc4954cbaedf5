"""Issues a plan, on schedule, whatever the server does; the honest half of a load.

Open loop: each request is sent at its planned time in a task of its own, so that a stalled server
(or a stalled sender) shows in every request that was due meanwhile and nothing is omitted
(coordinated omission; Tene, "How NOT to Measure Latency"). Closed loop: users take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from capibench.clock import VirtualTimeLoop
from capibench.load.load import ClosedLoop, Plan
from capibench.records import Phase, Request

Row = TypeVar("Row")
SPIN_S = 0.001
_Send = Callable[[Request, float], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True)
class Window:
    """The measured window, in absolute loop seconds unless moved; it ends before the drain."""

    begin_s: float  # open loop: end of the warm-up's schedule; closed: first measured request due
    end_s: float  # the last measured request was due

    def since(self, origin_s: float) -> Window:
        """The same window counted from `origin_s`, as the rows of a run are."""
        return Window(self.begin_s - origin_s, self.end_s - origin_s)


@dataclass(frozen=True, slots=True)
class DriveResult:
    """When things happened, in absolute loop seconds."""

    origin_s: float  # the schedule's zero
    window: Window
    drained_s: float  # the last answer arrived


async def drive(
    plan: Plan,
    answer: Callable[[Request, float, float], Awaitable[Row]],
    on_record: Callable[[Row], None],
) -> DriveResult:
    """Send all of `plan` and wait until everything is answered.

    Args:
        answer: `answer(request, intended_s, sent_s)` in absolute loop seconds returns the row. It
            turns a failure into a row; when it raises nevertheless, that is a bug, and the
            exception ends the load and leaves here.
        on_record: called with each row as it arrives, warm-up included.
    """
    loop = asyncio.get_running_loop()
    origin_s = loop.time()

    async def send(request: Request, intended_s: float) -> None:
        sent_s = max(loop.time(), intended_s)  # a loop may wake up to its resolution early
        on_record(await answer(request, intended_s, sent_s))

    try:
        if plan.closed_loop is None:
            window = await _open_loop(plan, send, origin_s)
        else:
            window = await _closed_loop(plan, plan.closed_loop, send)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    return DriveResult(origin_s, window, loop.time())


async def _open_loop(plan: Plan, send: _Send, origin_s: float) -> Window:
    loop = asyncio.get_running_loop()
    last_s = origin_s
    async with asyncio.TaskGroup() as tasks:
        for request in plan.requests:
            assert request.intended_s is not None
            last_s = origin_s + request.intended_s
            if last_s > loop.time():
                await _until(last_s)
            tasks.create_task(send(request, last_s))
    return Window(origin_s + plan.window_begin_s, last_s)


async def _closed_loop(plan: Plan, closed: ClosedLoop, send: _Send) -> Window:
    loop = asyncio.get_running_loop()
    turns = iter(zip(plan.requests, closed.think_s, strict=True))
    due_s: list[float] = []

    async def user() -> None:
        for request, think_s in turns:  # the next request that nobody has taken
            intended_s = loop.time() + think_s
            if think_s:
                await _until(intended_s)
            if request.phase is Phase.MEASURE:
                due_s.append(intended_s)
            await send(request, intended_s)

    async with asyncio.TaskGroup() as users:
        for _ in range(min(closed.num_users, len(plan.requests))):
            users.create_task(user())
    return Window(min(due_s), max(due_s))


async def _until(time_s: float) -> None:
    """Wait for an absolute time; a relative sleep would add the time that it took to get here.

    Under the real clock the last `SPIN_S` are spent awake, letting everything else that is ready
    run: an idle processor takes half a millisecond to wake up. Virtual time needs none of it.
    """
    loop = asyncio.get_running_loop()
    spin_s = 0.0 if isinstance(loop, VirtualTimeLoop) else SPIN_S
    waking: asyncio.Future[None] = loop.create_future()
    timer = loop.call_at(time_s - spin_s, _wake, waking)
    try:
        await waking
    finally:
        timer.cancel()
    while spin_s and loop.time() < time_s:
        await asyncio.sleep(0)


def _wake(waking: asyncio.Future[None]) -> None:
    if not waking.done():
        waking.set_result(None)
