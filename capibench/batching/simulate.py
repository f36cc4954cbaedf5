"""A strategy under load in virtual time, through the real `Batcher`.

What is simulated is only the worker, by a `ServiceTable`; queue, deadlines and decisions are the
very code that serves. So a figure from here differs from a measured one by the table alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capibench.batching.batcher import Batcher
from capibench.batching.offline import GRACE_S, Array, Indices
from capibench.batching.service_table import ServiceTable
from capibench.batching.stats import BatcherStats
from capibench.batching.strategy import Strategy
from capibench.clock import run_virtual
from capibench.errors import RequestFailed


@dataclass(frozen=True, repr=False)  # asyncio writes the results of tasks out, and arrays are long
class Offered:
    """A load: one entry per request in each array, ascending by arrival."""

    arrival_s: Array
    objective_s: Array  # from its arrival; what is answered later is not good
    priority: Indices  # 1 (critical) to 5 (background)

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if n == 0:
            raise ValueError("arrival_s: got nothing; expected at least one request")
        for name in ("objective_s", "priority"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name}: got {len(getattr(self, name))}; expected {n} values")
        if (np.diff(self.arrival_s) < 0).any() or self.arrival_s[0] < 0:
            raise ValueError("arrival_s: expected ascending seconds from 0 up")
        if not (self.objective_s > 0).all():
            raise ValueError("objective_s: expected seconds above 0")

    @classmethod
    def alike(cls, arrival_s: Array, objective_s: float) -> Offered:
        """The same objective and priority (medium) for all."""
        n = len(arrival_s)
        return cls(arrival_s, np.full(n, objective_s), np.full(n, 3))

    @property
    def due_s(self) -> Array:
        """[n]: latest good end."""
        due_s: Array = self.arrival_s + self.objective_s
        return due_s


@dataclass(frozen=True, repr=False)
class Outcome:
    """What became of every request of `offered`, in its order. NaN: never happened."""

    offered: Offered
    dispatched_s: Array
    done_s: Array
    stats: BatcherStats

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """[n]: in time or not."""
        return ~np.isnan(self.done_s)

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """[n]: answered within its objective."""
        return self.done_s <= self.offered.due_s + GRACE_S  # NaN compares as false

    @property
    def num_good(self) -> int:
        return int(self.good.sum())

    @property
    def latency_s(self) -> Array:
        """Arrival to answer, of those answered, by arrival."""
        latency_s: Array = (self.done_s - self.offered.arrival_s)[self.answered]
        return latency_s

    def wait_s(self, priority: int) -> Array:
        """Seconds in the queue of those in the class that left it for a worker."""
        waited_s: Array = self.dispatched_s - self.offered.arrival_s
        left: Array = waited_s[~np.isnan(waited_s) & (self.offered.priority == priority)]
        return left

    @property
    def answered_per_s(self) -> float | None:
        """Answers per second, first arrival to last answer; None: nothing was answered."""
        if not self.answered.any():
            return None
        return int(self.answered.sum()) / float(np.nanmax(self.done_s) - self.offered.arrival_s[0])

    def recovery_s(self, from_s: float, window_s: float, good_share: float) -> float | None:
        """Seconds from `from_s` until service is good again and stays so; None: it does not.

        Good: of those who arrive in a window, at least `good_share` are answered in time. Windows
        that nobody arrives in say nothing.
        """
        window = np.floor((self.offered.arrival_s - from_s) / window_s).astype(np.int64)
        recovered = 0
        for number in range(int(window[-1]) + 1):
            inside = window == number
            if inside.any() and self.good[inside].mean() < good_share:
                recovered = number + 1
        return None if recovered > window[-1] else recovered * window_s


def simulate(
    offered: Offered,
    strategy: Strategy,
    service: ServiceTable,
    worker_speeds: Sequence[float] = (1.0,),
    max_queue_size: int = 1_000_000,
    tell_deadlines: bool = True,
) -> Outcome:
    """Run `offered` through a batcher under virtual time.

    Args:
        strategy: a fresh one; it may remember things.
        service: of a worker with speed 1, at least up to the strategy's largest batch.
        worker_speeds: one per worker; a worker of speed 2 takes half the time.
        tell_deadlines: whether the batcher knows when an answer stops being good. If so, who is
            still waiting then leaves the queue unserved, and a strategy may look at it.
    """
    if strategy.max_batch_size > service.max_batch_size:
        raise ValueError(
            f"service: got sizes up to {service.max_batch_size}; expected up to the strategy's "
            f"max_batch_size, {strategy.max_batch_size}"
        )
    return run_virtual(
        _run(offered, strategy, service, worker_speeds, max_queue_size, tell_deadlines)
    )


async def _run(
    offered: Offered,
    strategy: Strategy,
    service: ServiceTable,
    worker_speeds: Sequence[float],
    max_queue_size: int,
    tell_deadlines: bool,
) -> Outcome:
    workers = [
        _IteratingWorker(service, speed) if strategy.joins_running else _Worker(service, speed)
        for speed in worker_speeds
    ]

    async def process(contents: Sequence[int], worker: int) -> Sequence[int]:
        await workers[worker].serve(len(contents))
        return contents

    n = len(offered.arrival_s)
    dispatched_s, done_s = np.full(n, np.nan), np.full(n, np.nan)
    batcher: Batcher[int, int] = Batcher(
        process, strategy, num_workers=len(workers), max_queue_size=max_queue_size
    )
    batcher.start()
    loop = asyncio.get_running_loop()

    async def ask(number: int, priority: int, due_s: float) -> None:
        try:
            answered = await batcher.submit(number, priority=priority, deadline_s=due_s)
        except RequestFailed:
            return
        dispatched_s[number], done_s[number] = answered.dispatched_s, answered.done_s

    due = offered.due_s if tell_deadlines else np.full(n, np.inf)
    async with asyncio.TaskGroup() as tasks:
        for number, (arrival_s, priority, due_s) in enumerate(
            zip(offered.arrival_s.tolist(), offered.priority.tolist(), due.tolist(), strict=True)
        ):
            if arrival_s > loop.time():
                await asyncio.sleep(arrival_s - loop.time())
            tasks.create_task(ask(number, priority, due_s))
    await batcher.stop()
    return Outcome(offered, dispatched_s, done_s, batcher.stats())


class _Worker:
    """One batch at a time."""

    def __init__(self, service: ServiceTable, speed: float) -> None:
        self._batch_s = [second / speed for second in service.batch_s]

    async def serve(self, size: int) -> None:
        await asyncio.sleep(self._batch_s[size - 1])


@dataclass(slots=True)
class _Group:
    size: int
    steps_left: int
    done: asyncio.Future[None]


class _IteratingWorker:
    """Iterates over all who run; who asks meanwhile joins next time (Yu et al., OSDI 2022)."""

    def __init__(self, service: ServiceTable, speed: float) -> None:
        self._service = service
        self._speed = speed
        self._joining: list[_Group] = []
        self._iterating: asyncio.Task[None] | None = None

    async def serve(self, size: int) -> None:
        loop = asyncio.get_running_loop()
        group = _Group(size, self._service.num_steps, loop.create_future())
        self._joining.append(group)
        if self._iterating is None:
            self._iterating = loop.create_task(self._iterate())
        await group.done

    async def _iterate(self) -> None:
        running: list[_Group] = []
        while self._joining or running:
            seconds = 0.0
            if self._joining:
                size = sum(group.size for group in self._joining)
                seconds += self._service.joined_s(size)
                seconds += 0.0 if running else self._service.base_s
                running += self._joining
                self._joining = []
            seconds += self._service.step_s[sum(group.size for group in running) - 1]
            await asyncio.sleep(seconds / self._speed)
            for group in running:
                group.steps_left -= 1
                if group.steps_left == 0:
                    group.done.set_result(None)
            running = [group for group in running if group.steps_left]
        self._iterating = None
