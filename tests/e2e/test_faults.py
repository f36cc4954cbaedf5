"""What goes wrong is recorded, loses nothing that was measured, and stops nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

VIRTUAL = ["time=virtual", "tracking=none", "corpus.max_passages=300"]

ENGINES = '''
"""Engines that misbehave on purpose."""

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar

from capibench.engine.engine import Generation


@dataclass
class _Answering:
    modeled: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    num_workers: ClassVar[int] = 1
    calls: int = field(init=False, default=0)

    async def start(self, model): ...
    async def stop(self): ...
    def count_tokens(self, prompt, max_new_tokens): return 1
    def describe(self): return {"name": type(self).__name__}

    async def generate(self, batch, worker):
        self.calls += 1
        await self.work()
        now = asyncio.get_running_loop().time()
        return [Generation("answer", 1, r.max_new_tokens, now, now) for r in batch]


@dataclass
class Stalling(_Answering):
    """Serves in 1 ms, but once, in the middle, takes a second longer."""
    at_call: int

    async def work(self):
        await asyncio.sleep(1.001 if self.calls == self.at_call else 0.001)


@dataclass
class Failing(_Answering):
    """Every third call raises."""

    async def work(self):
        if self.calls % 3 == 0:
            raise RuntimeError("the engine fell over")


@dataclass
class Slow(_Answering):
    async def work(self):
        await asyncio.sleep(0.02)


@dataclass
class Unstartable(_Answering):
    async def start(self, model):
        raise RuntimeError("no such accelerator")
'''


def engine(name: str, tmp_path: Path, **fields: object) -> tuple[list[str], dict[str, str]]:
    """Overrides that choose one of the engines above, and the environment that finds it."""
    package = tmp_path / "misbehaving"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "engines.py").write_text(ENGINES)
    folder = tmp_path / "conf" / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    node = {"_target_": f"misbehaving.engines.{name}", **fields}
    (folder / f"{name.lower()}.yaml").write_text(json.dumps(node))
    overrides = [
        "--config-dir",
        str(tmp_path / "conf"),
        "plugins=[misbehaving]",
        f"engine={name.lower()}",
    ]
    return overrides, {"PYTHONPATH": str(tmp_path)}


def rows_of(run_dir: str) -> pd.DataFrame:
    return pd.read_parquet(Path(run_dir) / "records.parquet")


def test_a_stall_shows_in_every_request_scheduled_during_it(
    tmp_path: Path, capibench: Callable[..., object]
) -> None:
    chosen, environment = engine("Stalling", tmp_path, at_call=150)
    done = capibench(
        "run", *chosen, *VIRTUAL, "load=constant", "load.rate_per_s=100", "load.num_requests=300",
        "load.warmup_requests=0", "cache=none", "batching=none", **environment,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = rows_of(done.result["run_dir"]).sort_values("intended_s")
    stalled = rows.loc[rows.generate_s.idxmax()]
    begin_s = stalled.done_s - stalled.generate_s
    during = rows[(rows.intended_s > begin_s) & (rows.intended_s < stalled.done_s)]
    assert len(during) >= 95  # a second at 100 requests per second
    # Nobody scheduled during the stall is answered before its end, and the latency says so.
    latency_s = during.done_s - during.intended_s
    assert (latency_s >= stalled.done_s - during.intended_s).all()


def test_failed_requests_are_rows_and_the_run_goes_on(
    tmp_path: Path, capibench: Callable[..., object]
) -> None:
    chosen, environment = engine("Failing", tmp_path)
    done = capibench(
        "run", *chosen, *VIRTUAL, "load.num_requests=90", "cache=none", "batching=none",
        **environment,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = rows_of(done.result["run_dir"])
    failed = rows[rows.status == "failed"]
    assert len(failed) == len(rows) // 3
    assert set(failed.error) == {"RuntimeError: the engine fell over"}
    measured = rows[rows.phase == "measure"]
    assert done.result["metrics"]["success_rate"] == (measured.status == "ok").mean()


def test_a_run_that_cannot_start_is_failed_never_a_number(
    tmp_path: Path, capibench: Callable[..., object]
) -> None:
    chosen, environment = engine("Unstartable", tmp_path)
    done = capibench("run", *chosen, *VIRTUAL, "load.num_requests=9", **environment)
    assert done.code == 1
    assert done.result["status"] == "failed"
    assert "no such accelerator" in done.result["reason"]
    assert done.result["metrics"] == {}


def test_a_killed_run_keeps_its_rows_and_the_study_goes_on(tmp_path: Path, home: Path) -> None:
    chosen, environment = engine("Slow", tmp_path)
    study_dir = tmp_path / "study"
    command = [
        sys.executable, "-m", "capibench.cli", "run", "-m", *chosen, "tracking=none",
        "corpus.max_passages=300", "embedder=modeled", "index=modeled", "cache=none",
        "load.num_requests=200,21", "load.warmup_requests=1", "load.rate_per_s=50",
        f"hydra.sweep.dir={study_dir}", "hydra.sweeper.order_seed=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **environment, "CAPIBENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    victim = wait_for_rows(study_dir, "200", process)
    os.kill(victim, signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    runs = {
        document["config"]["load"]["num_requests"]: (path.parent, document)
        for path in study_dir.glob("*/run.json")
        for document in [json.loads(path.read_text())]
    }
    folder, killed = runs[200]
    assert killed["status"] == "crashed"
    assert "SIGKILL" in killed["reason"]
    assert killed["metrics"] == {}
    kept = rows_of(str(folder))
    assert 1 <= len(kept) < 201
    assert (kept.status == "ok").all()
    assert runs[21][1]["status"] == "finished"
    assert json.loads(out.splitlines()[-1])["runs"] == {"finished": 1, "crashed": 1}

    # Resumed in the same folder: only the killed cell runs again.
    again = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **environment, "CAPIBENCH_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 runs, 1 finished before" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["runs"] == {"finished": 2}


def wait_for_rows(study_dir: Path, cell: str, process: subprocess.Popen[str]) -> int:
    """Process number of the run of `cell`, once it has some finished rows."""
    import psutil

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for journal in study_dir.glob(f"*{cell}*/journal.jsonl"):
            if journal.read_text().count("\n") >= 5:
                for child in psutil.Process(process.pid).children(recursive=True):
                    if "measure" in child.cmdline():
                        return child.pid
        time.sleep(0.05)
    raise AssertionError(f"the run of {cell} never got rows (study ended with {process.poll()})")


def test_an_unreachable_tracker_loses_nothing(capibench: Callable[..., object]) -> None:
    done = capibench(
        "run", "time=virtual", "corpus.max_passages=300", "load.num_requests=30",
        "tracking.uri=http://127.0.0.1:9",
    )  # fmt: skip
    assert done.code == 0, done.err
    run_dir = Path(done.result["run_dir"])
    document = json.loads((run_dir / "run.json").read_text())
    assert document["status"] == "finished"
    assert document["tracking"]["status"] == "failed"
    assert len(rows_of(str(run_dir))) == 30 + document["config"]["load"]["warmup_requests"]
