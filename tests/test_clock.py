"""Virtual time is exact, ordered and honest about standing still; Compute serves both clocks."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.clock import Compute, Modeled, RealTime, VirtualTime, run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def test_time_starts_at_zero_and_only_waiting_passes_it() -> None:
    async def main() -> tuple[float, float, float]:
        begin = now()
        sum(range(10_000))
        await asyncio.sleep(0)
        worked = now()
        await asyncio.sleep(3600.5)
        return begin, worked, now()

    assert run_virtual(main()) == (0.0, 0.0, 3600.5)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_timers_fire_in_order_at_their_time(delays: list[float]) -> None:
    fired: list[tuple[float, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay in delays:
            loop.call_at(delay, lambda delay=delay: fired.append((delay, now())))
        await asyncio.sleep(max(delays) + 1)

    run_virtual(main())
    assert [delay for delay, _ in fired] == sorted(delays)
    for delay, at in fired:
        assert at == pytest.approx(delay, abs=2e-9, rel=1e-15)


def test_ready_callbacks_run_in_order_and_timers_of_one_instant_in_a_repeatable_one() -> None:
    """asyncio's heap of timers does not keep the order of equal times; it must not vary, though."""

    async def main() -> tuple[list[int], list[int]]:
        loop = asyncio.get_running_loop()
        ready: list[int] = []
        timed: list[int] = []
        for number in range(50):
            loop.call_soon(ready.append, number)
            loop.call_at(0.25, timed.append, number)
        await asyncio.sleep(0.25 + 1e-6)
        return ready, timed

    ready, timed = run_virtual(main())
    assert ready == list(range(50))
    assert sorted(timed) == list(range(50))
    assert run_virtual(main()) == (ready, timed)


def test_timeouts_pass_in_virtual_time_and_cancel_what_they_guard() -> None:
    async def main() -> list[float]:
        times = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(10), timeout=2)
        times.append(now())
        await asyncio.wait_for(asyncio.sleep(1), timeout=5)
        times.append(now())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.Event().wait()
        times.append(now())
        return times

    assert run_virtual(main()) == [2.0, 3.0, 3.5]


def test_waits_longer_than_a_day_are_exact() -> None:
    async def main() -> float:
        await asyncio.sleep(40 * 86_400.0)
        return now()

    assert run_virtual(main()) == 40 * 86_400.0


def test_standing_still_is_an_error_and_still_cleans_up() -> None:
    cleaned = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(now())

    with pytest.raises(RuntimeError, match="virtual time stands still"):
        run_virtual(main())
    assert cleaned == [1.0]


def test_two_runs_are_identical() -> None:
    async def main() -> list[tuple[int, float]]:
        seen = []

        async def worker(number: int) -> None:
            for step in range(20):
                await asyncio.sleep(((number * 7919 + step * 104_729) % 1000) / 333)
                seen.append((number, now()))

        await asyncio.gather(*(worker(number) for number in range(20)))
        return seen

    assert run_virtual(main()) == run_virtual(main())


@dataclass
class _Doubler:
    """A modeled component: ten milliseconds a call and two per item."""

    def service_s(self, num_items: int) -> float:
        return 0.010 + 0.002 * num_items

    def double(self, items: list[int]) -> list[int]:
        return [2 * item for item in items]


def test_a_modeled_component_takes_its_stated_time() -> None:
    async def main() -> tuple[list[int], float]:
        compute = Compute("test")
        component = _Doubler()
        doubled = await compute.call(component, component.double, [1, 2, 3])
        compute.close()
        return doubled, now()

    assert isinstance(_Doubler(), Modeled)
    doubled, at = run_virtual(main())
    assert doubled == [2, 4, 6]
    assert at == pytest.approx(0.016, abs=1e-9)


def test_a_computing_component_runs_in_one_thread_beside_the_loop() -> None:
    threads: list[threading.Thread] = []

    def work(items: list[int]) -> int:
        threads.append(threading.current_thread())
        return sum(items)

    async def main() -> list[int]:
        compute = Compute("own")
        results = [await compute.call(object(), work, [1, number]) for number in range(3)]
        compute.close()
        return results

    assert RealTime(num_threads=1).run(main()) == [1, 2, 3]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.main_thread()
    assert threads[0].name.startswith("own")


def test_an_error_of_a_computing_component_reaches_the_caller() -> None:
    def fail(items: list[int]) -> int:
        raise ValueError("broken")

    async def main() -> None:
        compute = Compute("own")
        try:
            await compute.call(object(), fail, [1])
        finally:
            compute.close()

    with pytest.raises(ValueError, match="broken"):
        RealTime(num_threads=1).run(main())


def test_both_choices_run_the_same_coroutine() -> None:
    async def main() -> str:
        await asyncio.sleep(0)
        return "done"

    assert VirtualTime().run(main()) == RealTime(num_threads=1).run(main()) == "done"


def test_zero_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads: got 0; expected at least 1"):
        RealTime(num_threads=0)
