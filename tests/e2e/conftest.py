"""Runs of the whole stack for tests: in this process, or through the installed command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from capibench.config import conf_dir
from capibench.run_folder import NOT_PREPARED_EXIT, RunSpec
from capibench.runner import main as runner_main

# Small enough for a test, otherwise what a run is: real passages, real questions.
SMALL = [
    "corpus.max_passages=300",
    "load.num_requests=6",
    "load.warmup_requests=2",
    "tracking=none",
]


@dataclass(frozen=True)
class Outcome:
    run_dir: Path
    code: int

    @property
    def document(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.run_dir / "run.json").read_text())
        return loaded

    @property
    def rows(self) -> pd.DataFrame:
        return pd.read_parquet(self.run_dir / "records.parquet")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One artifact store for all tests and workers: what one made, the others load."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    return base / "home"


@pytest.fixture
def run_here(tmp_path: Path, home: Path) -> Callable[..., Outcome]:
    """Compose `overrides` and run them in this process, which has the heavy imports already."""

    def run(*overrides: str, small: bool = True) -> Outcome:
        run_dir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run_dir.mkdir()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose(
                "config", [*(SMALL if small else []), *overrides], return_hydra_config=True
            )
        chosen = {
            str(key): str(value)
            for key, value in config.hydra.runtime.choices.items()
            if not str(key).startswith("hydra/") and value is not None
        }
        OmegaConf.set_struct(config, False)
        config.pop("hydra")
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        RunSpec(
            config={str(key): value for key, value in resolved.items()},
            choices=chosen,
            overrides=list(overrides),
            study=None,
            position=None,
            home=str(home),
        ).write(run_dir)
        code = runner_main(["measure", str(run_dir)])
        if code == NOT_PREPARED_EXIT:
            code = runner_main(["prepare", str(run_dir)])
            if code == 0:
                code = runner_main(["measure", str(run_dir)])
        return Outcome(run_dir, code)

    return run


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON document on the last line of standard output."""
        parsed: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return parsed


@pytest.fixture
def capibench(tmp_path: Path, home: Path) -> Callable[..., Finished]:
    """The command as a user calls it, in an empty working folder."""

    def call(*arguments: str, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "capibench.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "CAPIBENCH_HOME": str(home), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call
