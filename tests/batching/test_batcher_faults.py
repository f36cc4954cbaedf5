"""Everything that can go wrong, in any order, over every strategy: nobody innocent is hurt.

A state machine submits bursts of requests at equal timestamps to a batcher whose engine has slow
and poisoned items and crashes now and then, cancels clients, fills the queue, pauses, and stops
while work is queued. 100,000 requests under virtual time in all, some under real time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from choice_files import choices, load_choice
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from capibench.batching.batcher import Batcher
from capibench.clock import VirtualTimeLoop
from capibench.config import build
from capibench.errors import DeadlinePassed, QueueFull, RequestFailed, RequestShed, WorkerBroken

INFINITY = float("inf")
NUM_VIRTUAL = 100_000  # requests in all, over all strategies
NUM_REAL = 100  # per strategy
CHOICES = {name: load_choice("batching", name) for name in choices("batching")}


class Engine:
    """10 + 2n milliseconds per call, scaled; what it is asked tells what it does."""

    def __init__(self, joins: bool, max_batch_size: int, scale: float) -> None:
        self._joins = joins
        self._max_batch_size = max_batch_size
        self._scale = scale
        self._running: Counter[int] = Counter()  # worker → items in calls
        self._unserved: dict[int, set[int]] = {}  # worker → numbers it was given
        self.first_seen: dict[int, None] = {}  # numbers in the order of their first run
        self.served: Counter[int] = Counter()
        self.excused: set[int] = set()  # were there at a crash
        self.crashes: list[type[Exception]] = []  # of the next calls

    async def __call__(self, requests: Sequence[tuple[int, str]], worker: int) -> list[int]:
        numbers = [number for number, _ in requests]
        kinds = [kind for _, kind in requests]
        assert self._joins or not self._running[worker]
        self._running[worker] += len(requests)
        assert 1 <= self._running[worker] <= self._max_batch_size
        self.first_seen.update(dict.fromkeys(numbers))
        self._unserved.setdefault(worker, set()).update(numbers)
        crash = self.crashes.pop() if self.crashes else None
        try:
            slow_s = 0.3 * kinds.count("slow")
            await asyncio.sleep((0.01 + 0.002 * len(requests) + slow_s) * self._scale)
        finally:
            self._running[worker] -= len(requests)
        if crash is not None:
            self.excused |= self._unserved[worker]
            raise crash("the engine crashed")
        if "poison" in kinds:
            raise ValueError("cannot digest this")
        self._unserved[worker].difference_update(numbers)
        self.served.update(numbers)
        return [-number for number in numbers]


class Machine(RuleBasedStateMachine):
    """One batcher from its start to its stop."""

    choice = "greedy"
    virtual = True
    num_requests = 0  # over all runs of a choice

    @initialize(workers=st.integers(1, 3), queue=st.sampled_from([2, 20, 300]), sheds=st.booleans())
    def begin(self, workers: int, queue: int, sheds: bool) -> None:
        self.loop = VirtualTimeLoop() if self.virtual else asyncio.new_event_loop()
        self.scale = 1.0 if self.virtual else 0.02
        built = build(CHOICES[self.choice], "batching")
        self.engine = Engine(
            built.strategy.joins_running, built.strategy.max_batch_size, self.scale
        )
        self.queue_size = queue
        self.clients: list[asyncio.Task[None]] = []
        self.kinds: list[tuple[int, str]] = []  # number → priority, kind
        self.ends: dict[int, list[str]] = {}

        async def start() -> None:
            self.batcher: Batcher[tuple[int, str], int] = Batcher(
                self.engine,
                built.strategy,
                workers,
                queue,
                composition=built.composition,
                sheds_overdue=sheds,
            )
            self.batcher.start()

        self.loop.run_until_complete(start())

    @rule(count=st.integers(1, 60), seed=st.integers(0, 2**32), calm=st.booleans())
    def burst(self, count: int, seed: int, calm: bool) -> None:
        """Many at the same instant, with bounds that fall together with ends of service."""
        draw = random.Random(seed)
        for _ in range(count):
            weights = [1, 0, 0] if calm else [30, 2, 1]
            kind = draw.choices(["good", "poison", "slow"], weights)[0]
            self.kinds.append((draw.randint(1, 5), kind))
            client = self.client(
                len(self.kinds) - 1,
                max_wait_s=draw.choice([0.0, 0.012, 0.05, INFINITY]) * self.scale,
                deadline_in_s=draw.choice([0.012, 0.024, 0.2, INFINITY, INFINITY]) * self.scale,
                patience_s=draw.choice([0.0, 0.012, 0.03, INFINITY, INFINITY, INFINITY]),
                wait_for_room=draw.random() < 0.3,
            )
            self.clients.append(self.loop.create_task(client))
        type(self).num_requests += count
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([0.001, 0.012, 0.036, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds * self.scale))

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 10))
    def clients_give_up(self, seed: int, count: int) -> None:
        for client in random.Random(seed).choices(self.clients, k=count) if self.clients else []:
            client.cancel()

    @rule(count=st.integers(1, 8), error=st.sampled_from([OSError, KeyError, WorkerBroken]))
    def engine_crashes(self, count: int, error: type[Exception]) -> None:
        self.engine.crashes += [error] * count

    @rule(seconds=st.sampled_from([0.012, 0.1]))
    def pause(self, seconds: float) -> None:
        self.batcher.pause()
        self.loop.run_until_complete(asyncio.sleep(seconds * self.scale))
        self.batcher.resume()

    @rule(drain=st.booleans(), paused=st.booleans())
    def stop(self, drain: bool, paused: bool) -> None:
        """The end: check it, and begin anew."""
        if paused:
            self.batcher.pause()
        self.finish(drain)
        self.begin(workers=1 + len(self.kinds) % 3, queue=self.queue_size, sheds=drain)

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.finish(drain=True)

    async def client(
        self,
        number: int,
        max_wait_s: float,
        deadline_in_s: float,
        patience_s: float,
        wait_for_room: bool,
    ) -> None:
        priority, kind = self.kinds[number]
        deadline_s = self.loop.time() + deadline_in_s
        ends = self.ends.setdefault(number, [])
        try:
            async with asyncio.timeout(None if patience_s == INFINITY else patience_s * self.scale):
                answered = await self.batcher.submit(
                    (number, kind),
                    priority=priority,
                    max_wait_s=max_wait_s,
                    deadline_s=deadline_s,
                    wait_for_room=wait_for_room,
                )
            assert answered.value == -number
            assert answered.dispatched_s < deadline_s
            ends.append("answered")
        except TimeoutError:
            ends.append("cancelled")
        except asyncio.CancelledError:
            ends.append("cancelled")
        except QueueFull:
            if number % 16 == 0:
                assert self.batcher.stats().num_waiting == self.queue_size
            ends.append("rejected")
        except RequestShed:
            ends.append("rejected")
        except DeadlinePassed:
            assert self.loop.time() >= deadline_s - 1e-9
            if self.virtual:
                assert self.loop.time() == pytest.approx(deadline_s, abs=2e-9)
            ends.append("timed_out")
        except (ValueError, OSError, KeyError, RequestFailed) as error:
            ends.append("stopped" if "was stopped" in str(error) else "failed")

    def finish(self, drain: bool) -> None:
        async def stop() -> None:
            async with asyncio.timeout(1000 if self.virtual else 200):  # nothing hangs
                await self.batcher.stop(drain)
                if self.clients:
                    await asyncio.wait(self.clients)
            with pytest.raises(RuntimeError, match="after stop"):
                await self.batcher.submit((0, "late"))

        self.loop.run_until_complete(stop())
        for client in self.clients:
            client.cancelled() or client.result()  # an assertion in it, if there was one
        self.check()
        self.loop.close()

    def check(self) -> None:
        engine, stats = self.engine, self.batcher.stats()
        counted: Counter[str] = Counter()
        for number, (_, kind) in enumerate(self.kinds):
            ends = self.ends.get(number, ["cancelled"])  # before it began
            assert len(ends) == 1
            counted[ends[0]] += 1
            assert engine.served[number] <= 1
            if ends[0] == "answered":
                assert engine.served[number] == 1
                assert kind != "poison"
            elif ends[0] == "failed":
                assert kind == "poison" or number in engine.excused
            elif ends[0] in ("rejected", "timed_out", "stopped"):
                assert number not in engine.first_seen
        for priority in range(1, 6):  # first in, first out within a class
            line = [number for number in engine.first_seen if self.kinds[number][0] == priority]
            assert line == sorted(line)
        assert (stats.num_waiting, stats.num_outside, stats.num_running) == (0, 0, 0)
        assert stats.num_answered >= counted["answered"]  # who gave up in that very instant
        assert stats.num_cancelled <= counted["cancelled"]
        begun = sum(number in self.ends for number in range(len(self.kinds)))
        assert begun == (
            stats.num_answered
            + stats.num_failed
            + stats.num_rejected
            + stats.num_timed_out
            + stats.num_cancelled
        )
        assert sum(stats.reasons.values()) == stats.num_batches
        assert all(busy_s <= stats.elapsed_s + 1e-6 for busy_s in stats.busy_s)


def run_machine(choice: str, virtual: bool, num_requests: int, **how: Any) -> None:
    machine = type(
        "TheMachine", (Machine,), {"choice": choice, "virtual": virtual, "num_requests": 0}
    )
    seeds = count()
    while machine.num_requests < num_requests:
        run_state_machine_as_test(
            seed(next(seeds))(machine),
            settings=settings(
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # shrinking thousands of requests takes minutes
                **how,
            ),
        )


@pytest.mark.parametrize("name", CHOICES)
def test_no_innocent_is_hurt_under_virtual_time(name: str) -> None:
    share = NUM_VIRTUAL // len(CHOICES) + 1
    run_machine(name, True, share, max_examples=8, stateful_step_count=40)


@pytest.mark.parametrize("name", CHOICES)
def test_no_innocent_is_hurt_under_real_time(name: str) -> None:
    run_machine(name, False, NUM_REAL, max_examples=2, stateful_step_count=12)
