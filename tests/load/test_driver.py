"""The driver keeps the schedule whatever the server does, and shows a stall to everyone it hit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from capibench.batching.batcher import Batcher
from capibench.batching.strategies.greedy import Greedy
from capibench.clock import RealTime, VirtualTimeLoop, run_virtual
from capibench.corpus.corpus import Question
from capibench.load.driver import DriveResult, drive
from capibench.load.load import ClosedLoop, Plan
from capibench.load.streams import LoadStreams
from capibench.records import Phase, Request


def request(number: int, intended_s: float | None, phase: Phase = Phase.MEASURE) -> Request:
    return Request(number, f"q{number}", "text", "short", 3, 8, intended_s, None, phase)


def plan(
    times: list[float | None], warmup: int = 0, closed: ClosedLoop | None = None, begin_s: float = 0
) -> Plan:
    planned = tuple(
        request(i, time_s, Phase.WARMUP if i < warmup else Phase.MEASURE)
        for i, time_s in enumerate(times)
    )
    return Plan(planned[:warmup], planned[warmup:], begin_s, closed, {})


@dataclass(frozen=True)
class Row:
    id: int
    intended_s: float
    sent_s: float
    done_s: float


def now() -> float:
    return asyncio.get_running_loop().time()


async def driven(planned: Plan, serve: Callable[[Request], Any]) -> tuple[DriveResult, list[Row]]:
    rows: list[Row] = []

    async def answer(asked: Request, intended_s: float, sent_s: float) -> Row:
        await serve(asked)
        return Row(asked.id, intended_s, sent_s, now())

    result = await drive(planned, answer, rows.append)
    return result, rows


async def two_seconds(asked: Request) -> None:
    await asyncio.sleep(2)


def test_open_loop_sends_on_time_however_slow_the_answers_are() -> None:
    async def main() -> None:
        await asyncio.sleep(100)  # the schedule's zero is the start of the load
        result, rows = await driven(plan([0.5, 0.5, 1.25, 3.0], 1, begin_s=0.5), two_seconds)
        assert [row.sent_s for row in rows] == [100.5, 100.5, 101.25, 103.0]
        assert [row.intended_s for row in rows] == [row.sent_s for row in rows]
        assert [row.done_s for row in rows] == [102.5, 102.5, 103.25, 105.0]
        assert result.origin_s == 100
        assert (result.window.begin_s, result.window.end_s) == (100.5, 103.0)
        assert result.drained_s == 105

    run_virtual(main())


def test_a_stall_of_the_server_shows_in_every_request_due_meanwhile() -> None:
    """One second in the middle of 4 s at 50/s; each request alone takes 11 ms."""

    async def main() -> list[Row]:
        async def process(contents: Any, worker: int) -> list[int]:
            stall_s = 1.0 if any(number == 100 for number in contents) else 0.0
            await asyncio.sleep(0.010 + 0.001 * len(contents) + stall_s)
            return list(contents)

        batcher: Batcher[int, int] = Batcher(process, Greedy(64), 1, 1000)
        batcher.start()
        _, rows = await driven(
            plan([i * 0.02 for i in range(200)]), lambda asked: batcher.submit(asked.id)
        )
        await batcher.stop()
        return rows

    rows = sorted(run_virtual(main()), key=lambda row: row.id)
    for row in rows:
        latency_s = row.done_s - row.intended_s
        assert row.sent_s == row.intended_s
        if 100 <= row.id <= 150:  # due within the second of the stall: waited for its end
            assert latency_s >= 3.011 - row.intended_s
        if row.id < 100 or row.id > 155:
            assert latency_s == pytest.approx(0.011, abs=1e-9)


def test_a_stall_of_the_sender_counts_from_the_schedule() -> None:
    """The loop itself is blocked for a second: sends are late, and latency includes it."""

    async def main() -> list[Row]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)

        async def serve(asked: Request) -> None:
            if asked.id == 2:
                loop._jumping.now_s += 1.0  # what a callback that never yields does
            await asyncio.sleep(0)

        _, rows = await driven(plan([i * 0.25 for i in range(10)]), serve)
        return rows

    rows = run_virtual(main())
    assert [row.id for row in rows] == list(range(10))
    lateness = [row.sent_s - row.intended_s for row in rows]
    assert lateness == [0, 0, 0, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    latency = [row.done_s - row.intended_s for row in rows]
    assert latency == [0, 0, 1.0, 0.75, 0.5, 0.25, 0, 0, 0, 0]


def test_closed_loop_has_one_request_under_way_per_user() -> None:
    async def main() -> None:
        under_way, most = 0, 0

        async def serve(asked: Request) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(1)
            under_way -= 1

        closed = ClosedLoop(2, (0.5,) * 6)
        result, rows = await driven(plan([None] * 6, 2, closed), serve)
        assert most == 2
        assert [row.sent_s for row in rows] == [0.5, 0.5, 2.0, 2.0, 3.5, 3.5]
        assert [row.intended_s for row in rows] == [row.sent_s for row in rows]
        assert (result.window.begin_s, result.window.end_s) == (2.0, 3.5)
        assert result.drained_s == 4.5

    run_virtual(main())


def test_closed_loop_with_more_users_than_requests() -> None:
    async def main() -> int:
        _, rows = await driven(plan([None] * 3, 0, ClosedLoop(10, (0.0,) * 3)), two_seconds)
        assert now() == 2
        return len(rows)

    assert run_virtual(main()) == 3


@pytest.mark.parametrize("closed", [None, ClosedLoop(2, (0.1,) * 4)])
def test_an_exception_of_the_pipeline_ends_the_load_and_leaves(closed: ClosedLoop | None) -> None:
    async def main() -> None:
        async def serve(asked: Request) -> None:
            await asyncio.sleep(0.01)
            if asked.id == 1:
                raise KeyError("a bug")
            await asyncio.sleep(100)

        times: list[float | None] = [None] * 4 if closed else [0.0, 0.1, 0.2, 50.0]
        with pytest.raises(KeyError, match="a bug"):
            await driven(plan(times, 0, closed), serve)
        assert now() < 1

    run_virtual(main())


def test_a_plan_of_every_open_load_runs_to_its_end(choice: Callable[..., Any]) -> None:
    load = choice("load", "poisson", num_requests=500, rate_per_s=100.0)
    questions = [Question("q", "text", (), (), "short", "heldout")]
    planned = load.plan(questions, LoadStreams.spawn(3, 0))

    async def main() -> tuple[DriveResult, list[Row]]:
        return await driven(planned, two_seconds)

    result, rows = run_virtual(main())
    assert len(rows) == 520
    assert result.window.begin_s == planned.window_begin_s
    assert run_virtual(main()) == (result, rows)


def test_the_same_schedule_under_the_real_clock() -> None:
    async def at_once(asked: Request) -> None:
        return None

    result, rows = RealTime(num_threads=1).run(driven(plan([0.0, 0.001, 0.002]), at_once))
    assert [row.id for row in rows] == [0, 1, 2]
    for row, offset_s in zip(rows, (0.0, 0.001, 0.002), strict=True):
        assert row.intended_s == result.origin_s + offset_s
        assert row.sent_s >= row.intended_s
