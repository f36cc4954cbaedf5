"""Engines in processes of their own: the same answers, and what happens when a process dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replica_engines import Obedient
from tiny_llama import NUM_POSITIONS, save_tiny

from capibench.config import node_of
from capibench.engine.engine import Generation, GenerationRequest, LoadsModel
from capibench.engine.modeled import Modeled
from capibench.engine.replicas import Replicas
from capibench.engine.replicas_messages import Begin, Done, Failed, Ready, Work, decode, encode
from capibench.engine.transformers_static import TransformersStatic
from capibench.errors import ConfigError, RequestFailed, RunFailed, WorkerBroken
from capibench.model.hf import HfModel
from capibench.model.recipe import ModelRecipe
from capibench.quantization.float_weights import FloatWeights

T = TypeVar("T")
PROMPTS = ["a", "open the file", "wxyz" * 5, "x"]
BATCH = [GenerationRequest(prompt, n) for prompt, n in zip(PROMPTS, (7, 1, 12, 3), strict=True)]


def obedient(
    threads: Sequence[int] = (1, 1),
    *,
    lives_while: object = "",
    on_start: str = "",
    pin_cores: bool = False,
    stop_timeout_s: float = 20.0,
) -> Replicas:
    inside = Obedient(str(lives_while), on_start)
    return Replicas(list(threads), pin_cores, stop_timeout_s, inside)


def served(engine: Replicas, use: Callable[[Replicas], Awaitable[T]]) -> T:
    async def main() -> T:
        await engine.start(None)
        try:
            return await use(engine)
        finally:
            await engine.stop()

    return asyncio.run(asyncio.wait_for(main(), 200))


async def say(engine: Replicas, worker: int, *prompts: str) -> list[Generation]:
    return await engine.generate([GenerationRequest(p, 1) for p in prompts], worker)


def children() -> set[psutil.Process]:
    """Also those that other tests left to this process, such as a resource tracker."""
    return set(psutil.Process().children())


async def pid_of(engine: Replicas, worker: int) -> int:
    return int((await say(engine, worker, "pid"))[0].text.split()[0])


async def begin(engine: Replicas, worker: int, prompt: str) -> asyncio.Task[list[Generation]]:
    """A batch that the process has certainly received: it answers a later one."""
    task = asyncio.create_task(say(engine, worker, prompt))
    await asyncio.sleep(0)
    await say(engine, worker, "after")
    return task


def test_a_worker_is_a_process_that_answers_in_request_order() -> None:
    async def use(engine: Replicas) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        answers = await asyncio.gather(say(engine, 0, "b", "a", "c"), say(engine, 1, "b"))
        assert [a.text.split()[1] for a in answers[0]] == ["b", "a", "c"]
        pids = [{int(a.text.split()[0]) for a in part} for part in answers]
        assert [len(p) for p in pids] == [1, 1]
        assert len({os.getpid()} | pids[0] | pids[1]) == 3
        for answer in (*answers[0], *answers[1]):  # times are of this loop's clock
            assert begin_s < answer.first_token_s <= answer.last_token_s < loop.time()

    served(obedient(), use)


def test_batches_of_one_replica_run_side_by_side() -> None:
    """An engine inside that lets batches join a running one is given them while it runs."""

    async def use(engine: Replicas) -> None:
        waiting = await begin(engine, 0, "wait")
        assert (await say(engine, 0, "x"))[0].text.endswith("x")
        assert not waiting.done()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert (await say(engine, 0, "y"))[0].text.endswith("y")

    served(obedient([1]), use)


def test_a_failing_batch_leaves_its_replica_alive() -> None:
    async def use(engine: Replicas) -> None:
        pid = await pid_of(engine, 0)
        with pytest.raises(RequestFailed, match=r"RuntimeError: poisoned \\udc80") as failure:
            await say(engine, 0, "fine", "fail")
        assert not isinstance(failure.value, WorkerBroken)
        with pytest.raises(RequestFailed, match=r"^not this one$"):
            await say(engine, 0, "refuse")
        with pytest.raises(RequestFailed, match="not valid Unicode"):
            await say(engine, 0, "\udc80")
        assert await pid_of(engine, 0) == pid

    served(obedient([1]), use)


def test_a_killed_replica_fails_its_batches_and_is_started_again() -> None:
    async def use(engine: Replicas) -> None:
        pid, other = await pid_of(engine, 0), await pid_of(engine, 1)
        lost = [await begin(engine, 0, "wait") for _ in range(2)]
        innocent = await begin(engine, 1, "wait")
        os.kill(pid, signal.SIGKILL)
        for task in lost:
            with pytest.raises(
                WorkerBroken, match="replica 0 is broken: its process was killed by SIGKILL"
            ):
                await task
        assert await pid_of(engine, 0) not in (pid, other)
        assert await pid_of(engine, 1) == other
        assert not innocent.done()
        assert engine.describe()["restarts"] == 1
        innocent.cancel()

    served(obedient(), use)


def test_a_batch_that_kills_every_process_hurts_only_itself() -> None:
    async def use(engine: Replicas) -> None:
        for restarts in (1, 2):
            with pytest.raises(WorkerBroken, match="killed by SIGKILL"):
                await say(engine, 0, "x", "die")
            assert len(await say(engine, 0, "x", "y")) == 2
            assert engine.describe()["restarts"] == restarts

    served(obedient([1]), use)


def test_a_replica_that_cannot_be_started_again_fails_its_batches_until_it_can(
    tmp_path: Path,
) -> None:
    alive = tmp_path / "alive"
    alive.touch()

    async def use(engine: Replicas) -> None:
        pid = await pid_of(engine, 0)
        alive.unlink()
        with pytest.raises(WorkerBroken, match="killed by SIGKILL"):
            await say(engine, 0, "die")
        for _ in range(2):
            with pytest.raises(
                WorkerBroken,
                match="replica 0 is broken and cannot be started again: replica 0 ended with "
                "exit status 7 before it was ready",
            ):
                await say(engine, 0, "x")
        alive.touch()
        assert await pid_of(engine, 0) != pid

    served(obedient([1], lives_while=alive), use)


@pytest.mark.parametrize(
    ("on_start", "error", "message"),
    [
        ("refuse", ConfigError, "engine.replica.on_start: got 'refuse'; expected something else"),
        ("exit", RunFailed, "replica . ended with exit status 7 before it was ready"),
    ],
)
def test_none_is_left_where_one_cannot_be_started(
    on_start: str, error: type[Exception], message: str
) -> None:
    async def use(engine: Replicas) -> None:
        raise AssertionError("it was started")

    before = children()
    with pytest.raises(error, match=message):
        served(obedient(on_start=on_start), use)
    assert children() <= before


def test_stopping_ends_what_is_under_way_and_what_does_not_listen() -> None:
    async def main() -> None:
        before = children()
        engine = obedient([1, 1, 1], stop_timeout_s=0.5)
        await engine.start(None)
        pids = [await pid_of(engine, worker) for worker in range(3)]
        waiting = await begin(engine, 0, "wait")
        os.kill(pids[1], signal.SIGSTOP)  # it will not answer any more, nor end by itself
        os.kill(pids[2], signal.SIGKILL)  # it may be dead, or on its way back
        await engine.stop()
        with pytest.raises(RequestFailed, match="replica 0 was stopped"):
            await waiting
        with pytest.raises(RequestFailed, match="replica 1 was stopped"):
            await say(engine, 1, "x")
        assert children() <= before
        await engine.stop()

    asyncio.run(asyncio.wait_for(main(), 200))


ORPHANS = """
import asyncio, os, signal, sys
from replica_engines import Obedient
from capibench.engine.engine import GenerationRequest
from capibench.engine.replicas import Replicas

async def main():
    engine = Replicas([1, 1], False, 20.0, Obedient("", ""))
    await engine.start(None)
    asyncio.create_task(engine.generate([GenerationRequest("wait", 1)], 0))
    await engine.generate([GenerationRequest("x", 1)], 0)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_replica_never_outlives_its_run() -> None:
    """The replicas hold the pipe of standard error too: `run` returns when the last one ended."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")


def test_each_replica_has_its_threads_and_says_what_it_did() -> None:
    async def use(engine: Replicas) -> None:
        assert engine.num_workers == 2
        assert engine.count_tokens("four") == 4
        await say(engine, 1, "a", "b")
        with pytest.raises(RequestFailed):  # comes after the description
            await say(engine, 1, "refuse")
        described = engine.describe()
        assert described["name"] == "obedient"
        assert (described["omp.0"], described["omp.1"]) == ("1", "2")
        assert (described["threads.0"], described["threads.1"]) == (1, 2)
        assert (described["answered.0"], described["answered.1"]) == (0, 2)
        assert (described["workers"], described["restarts"]) == (2, 0)
        assert 0 < int(described["own_bytes.0"]) < psutil.virtual_memory().total

    served(obedient([1, 2]), use)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes to cores")
def test_pinned_replicas_have_cores_of_their_own() -> None:
    free = sorted(os.sched_getaffinity(0))

    async def use(engine: Replicas) -> None:
        described = engine.describe()
        assert (described["num_cores"], described["cores.0"]) == (1, str(free[0]))

    served(obedient([1], pin_cores=True), use)
    with pytest.raises(ConfigError, match=rf"engine\.pin_cores: .* may use {len(free)}; expected"):
        served(obedient([1] * (len(free) + 1), pin_cores=True), use)


def test_wrong_values(choice: Callable[..., Any]) -> None:
    inside = Obedient("", "")
    with pytest.raises(ValueError, match=r"threads_per_replica: got \[\]; expected"):
        Replicas([], False, 1.0, inside)
    with pytest.raises(ValueError, match=r"threads_per_replica: got \[1, 0\]; expected"):
        Replicas([1, 0], False, 1.0, inside)
    with pytest.raises(ValueError, match=r"stop_timeout_s: got 0\.0; expected more than 0"):
        Replicas([1], False, 0.0, inside)
    with pytest.raises(ValueError, match="replica: got Modeled, which states its time"):
        Replicas([1], False, 1.0, Modeled(1, 0.0, 0.0, {1: 1.0}, 4.0))
    with pytest.raises(ValueError, match=r"replica\.num_workers: got 2; expected 1"):
        Replicas([1], False, 1.0, TransformersStatic(2, "native"))
    with pytest.raises(ConfigError, match=r"engine\.replica\.num_workers: got 0; expected"):
        choice("engine", "replicas", replica={**node_of(TransformersStatic(1, "native")),
                                              "num_workers": 0})  # fmt: skip


def test_choice(choice: Callable[..., Any]) -> None:
    engine = choice("engine", "replicas")
    assert (engine.modeled, engine.needs_model, engine.num_workers) == (False, True, 2)
    assert engine.kv_cache == "native"
    assert isinstance(engine, LoadsModel)
    assert not isinstance(TransformersStatic(1, "native"), LoadsModel)


text = st.text(max_size=20)
times = st.floats(allow_nan=False, allow_infinity=False)
requests = st.builds(GenerationRequest, text, st.integers(1, 9))
generations = st.builds(Generation, text, st.integers(0, 9), st.integers(0, 9), times, times)
described = st.dictionaries(text, text | st.integers(-9, 9) | times, max_size=3)


@given(
    st.one_of(
        st.builds(Work, st.integers(0, 9), st.lists(requests)),
        st.builds(Done, st.integers(0, 9), st.lists(generations)),
        st.builds(Failed, st.integers(0, 9), text),
        st.builds(Ready, times, st.none() | st.integers(1, 9), st.none(), described),
        st.builds(Begin, described, st.none() | described, st.lists(text), st.just(1),
                  st.none() | st.lists(st.integers(0, 9))),
    )
)  # fmt: skip
def test_messages_arrive_as_they_were_sent(message: Any) -> None:
    frame = encode(message)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode(frame[4:]) == message


def in_process(recipe: ModelRecipe, inside: TransformersStatic) -> list[Generation]:
    """What the same engine answers in this process."""

    async def main() -> list[Generation]:
        await inside.start(recipe.load().model)
        try:
            return await inside.generate(BATCH, 0)
        finally:
            await inside.stop()

    return asyncio.run(main())


def without_times(answers: Sequence[Generation]) -> list[tuple[str, int, int]]:
    return [(a.text, a.prompt_tokens, a.output_tokens) for a in answers]


def test_a_model_answers_as_in_the_runs_own_process(tmp_path: Path) -> None:
    """Each replica reads the quantized weights itself: the same tokens, bytes and identity."""
    source = HfModel(str(save_tiny(tmp_path / "tiny")), "fp32")
    quantization = FloatWeights("float64")
    (tmp_path / "doubles").mkdir()
    quantization.quantize(source.load(), [], tmp_path / "doubles")
    recipe = ModelRecipe(source, quantization, tmp_path / "doubles")
    inside = TransformersStatic(1, "native")
    expected = without_times(in_process(recipe, inside))
    engine = Replicas([1, 1], False, 20.0, inside)
    engine.will_load(recipe)

    async def use(engine: Replicas) -> None:
        begin_s = asyncio.get_running_loop().time()
        first, second = await asyncio.gather(
            engine.generate(BATCH, 0), engine.generate(BATCH[::-1], 1)
        )
        end_s = asyncio.get_running_loop().time()
        assert without_times(first) == expected == without_times(second)[::-1]
        for answer in (*first, *second):
            assert begin_s < answer.first_token_s <= answer.last_token_s < end_s
        assert engine.count_tokens("a" * 90, 6) == 90
        with pytest.raises(RequestFailed, match=f"exceeds the model's {NUM_POSITIONS} positions"):
            engine.count_tokens("a" * 90, 7)
        with pytest.raises(RequestFailed, match="max_new_tokens is 0; expected at least 1"):
            await engine.generate([GenerationRequest("a", 0)], 0)
        described = engine.describe()
        assert (described["dtype"], described["attention"]) == ("float64", "sdpa")
        assert described["threads_per_worker"] == 1
        assert int(described["kv_bytes_per_token"]) > 0
        facts, here = engine.model_facts(), recipe.load().facts
        for name in ("fingerprint", "dtype", "kernel", "baseline_bytes", "num_bytes"):
            assert getattr(facts, name) == getattr(here, name)
        assert facts.num_bytes > 1.9 * facts.baseline_bytes

    served(engine, use)
