"""A study: several runs, what is recorded about them, and what a person sees at the end.

The ledger (`ledger.jsonl`) holds one line per ended run. It is what makes a study resumable:
Hydra itself numbers jobs from 0 each time and remembers nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capibench.artifacts import home
from capibench.config import build, check_finite
from capibench.errors import ConfigError, RunFailed
from capibench.launch import default_tracking_uri
from capibench.records import RunStatus
from capibench.run_folder import CONFIG_ERROR_EXIT, utc_now, write_json
from capibench.tracking.tracker import TrackingError

DONE = (RunStatus.FINISHED, RunStatus.SKIPPED)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study: a cell and which of its repetitions."""

    key: str  # names its folder; the same for the same overrides and repetition
    overrides: list[str]
    varied: list[str]  # those of them that differ between cells: what tells this one from others
    repeat: int
    position: int


@dataclass(frozen=True, slots=True)
class StudyCell:
    """One combination: how it was asked for, and what that resolved to."""

    overrides: list[str]
    config: Mapping[str, Any]


def plan_blocks(cells: Sequence[StudyCell], repeats: int, order_seed: int) -> list[Job]:
    """Blocks of all cells, each in a random order of its own (randomised complete blocks)."""
    jobs: list[Job] = []
    everywhere = (
        set.intersection(*(set(cell.overrides) for cell in cells)) if len(cells) > 1 else set()
    )
    for repeat in range(repeats):
        order = np.random.default_rng((order_seed, repeat)).permutation(len(cells))
        for number in order:
            cell = cells[number]
            position = len(jobs)
            varied = [override for override in cell.overrides if override not in everywhere]
            key = f"{_slug(varied, cell.config)}-r{repeat}"
            overrides = [
                *cell.overrides,
                *([f"repeat={repeat}"] if repeats > 1 else []),
                f"hydra.sweep.subdir={key}",
            ]
            jobs.append(Job(key, overrides, varied, repeat, position))
    return jobs


def _slug(varied: Sequence[str], config: Mapping[str, Any]) -> str:
    """A readable folder name from what varies; the hash of the resolved configuration keeps a
    study that is resumed with other values, in overrides or in yaml, from taking these runs for
    its own."""
    values = [override.partition("=")[2] for override in varied]
    text = re.sub(r"[^A-Za-z0-9_.]+", "_", "-".join(values)).strip("_.")[:60]
    resolved = json.dumps(config, sort_keys=True).encode()
    digest = hashlib.blake2b(resolved, digest_size=4).hexdigest()
    return f"{text}-{digest}" if text else digest


class Study:
    """One study folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def finished(self) -> set[str]:
        """Keys of the runs that need not be run again."""
        if not self._ledger.is_file():
            return set()
        last: dict[str, str] = {}
        for line in self._ledger.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # half a line: the launcher died while it wrote it
                continue
            last[row["key"]] = row["status"]
        return {key for key, status in last.items() if status in DONE}

    def check(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Build every cell in a process of its own, so that this one stays light.

        Raises:
            ConfigError: the first wrong value, before any run was started.
        """
        for config in configs:
            check_finite(config, "")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "cells.json", list(configs))
        checked = subprocess.run(
            [sys.executable, "-m", "capibench.runner", "check", str(self.folder)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if checked.returncode == CONFIG_ERROR_EXIT:
            raise ConfigError("", checked.stdout)
        if checked.returncode != 0:
            raise RunFailed(f"checking the study's cells ended with {checked.returncode}")

    def begin(
        self,
        jobs: Sequence[Job],
        num_skipped: int,
        tracking: Mapping[str, Any],
        plugins: Sequence[str],
    ) -> None:
        """Announce, and let the tracker make its store before several processes want it."""
        self._open_tracker(tracking, plugins)
        write_json(
            self.folder / "study.json",
            {
                "schema_version": 1,
                "study": self.folder.name,
                "begun_at": utc_now(),
                "command": ["capibench", "run", *sys.argv[1:]],
                "tracking_target": tracking["_target_"],
                "num_jobs": len(jobs) + num_skipped,
                "jobs": {job.key: {"position": job.position, "varied": job.varied} for job in jobs},
            },
        )
        again = f", {num_skipped} finished before" if num_skipped else ""
        sys.stderr.write(f"study {self.folder.name}: {len(jobs)} runs{again}\n")

    def _open_tracker(self, tracking: Mapping[str, Any], plugins: Sequence[str]) -> None:
        try:
            build(tracking, "tracking", plugins).open(tracking_uri())
        except TrackingError as error:
            # Each run says in its own record that it could not be logged; the study goes on.
            sys.stderr.write(f"tracking will fail: {error}\n")

    def record(self, document: Mapping[str, Any]) -> None:
        """One line per ended run."""
        line = {
            "key": document["run_id"],
            "status": document["status"],
            "reason": document["reason"],
            "choices": document["cell"]["choices"],
            "ended_at": document["ended_at"],
        }
        with self._ledger.open("a", encoding="utf-8") as file:
            # A line begins after whatever a dying launcher may have left unfinished.
            file.write("\n" * self._ends_in_half_a_line() + json.dumps(line) + "\n")

    def _ends_in_half_a_line(self) -> bool:
        written = self._ledger.read_bytes() if self._ledger.is_file() else b""
        return bool(written) and not written.endswith(b"\n")

    def job(self, key: str) -> dict[str, Any]:
        """Where in its order the study runs this key, and which overrides are its own."""
        document = json.loads((self.folder / "study.json").read_text(encoding="utf-8"))
        return {**document["jobs"][key], "of": document["num_jobs"]}

    def end(self) -> None:
        """The table, the report, and where to look next."""
        from rich.console import Console

        from capibench.report.html import write_report
        from capibench.report.results import read_study
        from capibench.report.tables import terminal_table

        results = read_study(self.folder)
        page = write_report(self.folder)
        console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
        console.print(terminal_table(results, console.width))
        console.print(f"report:    {page}", soft_wrap=True)
        console.print("MLflow UI: capibench ui", soft_wrap=True)
        statuses = [run.status for run in results.runs]
        counts = {str(s): statuses.count(s) for s in RunStatus if statuses.count(s)}
        sys.stdout.write(
            json.dumps({"study_dir": str(self.folder), "runs": counts, "report": str(page)}) + "\n"
        )


def tracking_uri() -> str:
    """The store that `capibench ui` shows by default."""
    return default_tracking_uri(home())
