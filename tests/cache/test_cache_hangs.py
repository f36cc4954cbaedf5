"""Nobody waits forever: not for himself, not for who will never answer, not for a lock that a
signal handler interrupts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from capibench.cache import AggressiveCache


@pytest.fixture
def cache() -> AggressiveCache:
    return AggressiveCache(1, None, strategy="lru")


def each_result(*works: Callable[[], Any]) -> list[Any]:
    """What each returns or raises, in a thread of its own; fails where one never ends."""
    results: list[Any] = [None] * len(works)

    def run(number: int) -> None:
        try:
            results[number] = works[number]()
        except BaseException as error:  # noqa: BLE001
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive(), "it hangs"
    return results


def until_joined(cache: AggressiveCache, num_joined: int) -> None:
    while cache.get_cache_stats()["overall"]["joined_flights"] < num_joined:
        threading.Event().wait(0.002)  # leaves the interpreter to the others


def test_threads_whose_computations_need_each_other(cache: AggressiveCache) -> None:
    for num in (2, 3):
        together = threading.Barrier(num)

        def ask(number: int, num: int = num, together: threading.Barrier = together) -> str:
            def compute() -> str:
                together.wait(200)
                after = f"{num}-{(number + 1) % num}"
                return f"{number}" + cache.get_or_compute(after, lambda: "leaf")

            return cache.get_or_compute(f"{num}-{number}", compute)

        results = each_result(*(lambda number=number: ask(number) for number in range(num)))
        assert any(str(number) + "leaf" in results for number in range(num))
        assert all(isinstance(result, str) for result in results)


def test_computations_of_two_caches_that_need_each_other(cache: AggressiveCache) -> None:
    other, together = AggressiveCache(1, None, strategy="lru"), threading.Barrier(2)

    def ask(mine: AggressiveCache, theirs: AggressiveCache) -> str:
        def compute() -> str:
            together.wait(200)
            return "from " + theirs.get_or_compute("k", lambda: "leaf")

        return mine.get_or_compute("k", compute)

    results = each_result(lambda: ask(cache, other), lambda: ask(other, cache))
    assert "from leaf" in results


def test_tasks_whose_computations_need_each_other(cache: AggressiveCache) -> None:
    async def leaf() -> str:
        return "leaf"

    async def main() -> list[str]:
        together = asyncio.Barrier(2)

        async def ask(mine: str, theirs: str) -> str:
            async def compute() -> str:
                await together.wait()
                return mine + await cache.get_or_compute_async(theirs, leaf)

            return await cache.get_or_compute_async(mine, compute)

        return await asyncio.gather(ask("a", "b"), ask("b", "a"))

    (results,) = each_result(lambda: asyncio.run(main()))
    assert "aleaf" in results or "bleaf" in results


async def _gathers(cache: AggressiveCache, leaf: Callable[[], Any]) -> Any:
    return (await asyncio.gather(cache.get_or_compute_async("k", leaf)))[0]


async def _waits_for(cache: AggressiveCache, leaf: Callable[[], Any]) -> Any:
    return await asyncio.wait_for(cache.get_or_compute_async("k", leaf), 100)


async def _goes_to_a_thread(cache: AggressiveCache, leaf: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(cache.get_or_compute, "k", lambda: "inner")


@pytest.mark.parametrize("ask", [_gathers, _waits_for, _goes_to_a_thread])
def test_a_computation_that_asks_for_its_own_key_through_another_task(
    cache: AggressiveCache, ask: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    async def leaf() -> str:
        return "inner"

    async def main() -> str:
        async def compute() -> str:
            return "outer " + await ask(cache, leaf)

        return await cache.get_or_compute_async("k", compute)

    assert each_result(lambda: asyncio.run(main())) == ["outer inner"]


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_who_computes_in_a_loop_that_has_ended_leaves_it_to_the_next(
    cache: AggressiveCache, is_closed: bool, is_async: bool
) -> None:
    loop = asyncio.new_event_loop()
    release = threading.Event()

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    async def fresh() -> str:
        return "fresh"

    async def start() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(cache.get_or_compute_async("k", never))
        await asyncio.to_thread(release.wait, 200)  # others join it meanwhile
        return task

    def lead() -> asyncio.Task[Any]:
        task = loop.run_until_complete(start())
        if is_closed:
            loop.close()
        return task

    def ask() -> str:
        if is_async:
            return asyncio.run(cache.get_or_compute_async("k", fresh))
        return cache.get_or_compute("k", lambda: "fresh")

    def join() -> str:
        while cache.get_cache_stats()["overall"]["total_misses"] == 0:
            threading.Event().wait(0.002)
        return ask()

    def stop() -> str:
        until_joined(cache, 1)
        release.set()
        return "stopped"

    task, *rest = each_result(lead, join, stop)
    assert rest == ["fresh", "stopped"]
    cache.clear()
    assert each_result(ask) == ["fresh"]
    if not is_closed:
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()
    task._log_destroy_pending = False


def test_an_iteration_that_stops_is_everybodys_error(cache: AggressiveCache) -> None:
    def compute() -> None:
        until_joined(cache, 2)
        raise StopIteration

    async def other() -> None:
        return None

    def after_it_began(ask: Callable[[], Any]) -> Any:
        while cache.get_cache_stats()["overall"]["total_misses"] == 0:
            threading.Event().wait(0.002)
        return ask()

    results = each_result(
        lambda: cache.get_or_compute("k", compute),
        lambda: after_it_began(lambda: cache.get_or_compute("k", lambda: None)),
        lambda: after_it_began(lambda: asyncio.run(cache.get_or_compute_async("k", other))),
    )
    assert [type(result) for result in results] == [RuntimeError] * 3
    assert all("StopIteration" in str(result) for result in results)


def test_a_pool_that_cancels_leaves_it_to_the_next(cache: AggressiveCache) -> None:
    def compute() -> None:
        until_joined(cache, 1)
        raise concurrent.futures.CancelledError

    def join() -> str:
        while cache.get_cache_stats()["overall"]["total_misses"] == 0:
            threading.Event().wait(0.002)
        return cache.get_or_compute("k", lambda: "mine")

    results = each_result(lambda: cache.get_or_compute("k", compute), join)
    assert isinstance(results[0], concurrent.futures.CancelledError)
    assert results[1] == "mine"


def test_who_waits_is_told_that_the_cache_was_shut_down(cache: AggressiveCache) -> None:
    release, told = threading.Event(), threading.Barrier(3)

    def compute() -> str:
        until_joined(cache, 2)
        cache.shutdown()
        told.wait(200)  # the others, while it still computes
        return "computed"

    async def other() -> None:
        return None

    def join(ask: Callable[[], Any]) -> str:
        while cache.get_cache_stats()["overall"]["total_misses"] == 0:
            release.wait(0.002)
        with pytest.raises(RuntimeError, match="shut down"):
            ask()
        told.wait(200)
        return "told"

    assert each_result(
        lambda: cache.get_or_compute("k", compute),
        lambda: join(lambda: cache.get_or_compute("k", lambda: None)),
        lambda: join(lambda: asyncio.run(cache.get_or_compute_async("k", other))),
    ) == ["computed", "told", "told"]


def run_script(script: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        timeout=200,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_signal_handler_may_shut_down_whatever_it_interrupts(tmp_path: Path) -> None:
    script = """
import signal, sys, threading
from capibench.cache import AggressiveCache
for round_ in range(60):
    cache = AggressiveCache(0.02, 8, sys.argv[1], "lru", compress=False)
    busy = [threading.Thread(target=lambda: [cache.get(f"k{n}") for n in range(200)], daemon=True)]
    signal.signal(signal.SIGALRM, lambda *_: cache.shutdown())
    signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0001 * round_)
    number = 0
    try:
        while True:
            cache.set(f"k{number}", "x" * 2000)
            cache.get(f"k{number // 2}")
            number += 1
    except RuntimeError as error:
        assert "shut down" in str(error)
    for thread in threading.enumerate():
        if thread.name == "cache-closer":
            thread.join()
print("done")
"""
    assert run_script(script, tmp_path) == "done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    """Also while another thread computes and others hold locks; the folder is the parent's."""
    script = """
import os, sys, threading
from capibench.cache import AggressiveCache
cache = AggressiveCache(0.008, 1, sys.argv[1], "lru", prefetch=True)
for number in range(40):
    cache.set(f"k{number}", number)
    cache.get(f"k{number}")
begun, release = threading.Event(), threading.Event()
compute = lambda: (begun.set(), release.wait(200))[1]
thread = threading.Thread(target=cache.get_or_compute, args=("computed", compute))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    for call in (
        lambda: cache.get("k39"),
        lambda: cache.set("k39", 1),
        lambda: cache.get_or_compute("computed", lambda: 1),
        cache.clear,
        cache.get_cache_stats,
    ):
        try:
            call()
        except RuntimeError as error:
            assert "child made by fork" in str(error)
        else:
            os._exit(1)
    cache.shutdown()
    own = AggressiveCache(1, None)
    assert own.get_or_compute("computed", lambda: 1) == 1
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
release.set()
thread.join()
laps = [cache.get(f"k{number}") for number in 3 * list(range(40))]
assert laps == 3 * list(range(40))
assert cache.get_cache_stats()["l2_cache"]["errors"] == 0
"""
    assert run_script(script, tmp_path) == ""
