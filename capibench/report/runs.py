"""One run as a reader sees it, and the combination that its repetitions stand for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from capibench.records import Phase, RunStatus


@dataclass(frozen=True, slots=True)
class Value:
    """A metric of a run or combination; None: unknown, and the flags say why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    flags: tuple[str, ...] = ()


UNKNOWN = Value(None)


@dataclass(frozen=True, slots=True)
class Ground:
    """What two runs must share to be compared at all."""

    modeled: bool
    corpus: str
    time: str
    load: str  # canonical JSON of the load's configuration and the seed it is drawn with
    slo: str  # canonical JSON of the objectives

    def sentence(self) -> str:
        kind = "Modeled" if self.modeled else "Measured"
        return f"{kind} under {self.time} time, corpus {self.corpus[:12] or 'unknown'}"


def canonical(node: Any) -> str:
    """The same text for the same configuration."""
    return json.dumps(node, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class RunResult:
    """One run directory."""

    folder: Path
    document: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.document["run_id"])

    @property
    def status(self) -> RunStatus:
        return RunStatus(self.document["status"])

    @property
    def reason(self) -> str | None:
        reason: str | None = self.document["reason"]
        return reason

    @property
    def repeat(self) -> int:
        return int(self.document["cell"]["repeat"] or 0)

    @property
    def position(self) -> int:
        position = self.document["cell"]["position"]
        return -1 if position is None else int(position)

    @cached_property
    def choices(self) -> dict[str, str]:
        """Group → choice, without what Hydra itself is configured with."""
        return {
            group: str(choice)
            for group, choice in self.document["cell"]["choices"].items()
            if choice is not None and not group.startswith("hydra")
        }

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """Overrides of single values (`load.rate_per_s=4`, `seed=2`), which no choice shows."""
        return tuple(
            override
            for override in self.document["cell"]["overrides"]
            if override.partition("=")[0].lstrip("+~") not in (*self.choices, "repeat", "name")
            and not override.startswith(("hydra", "+hydra"))
        )

    @cached_property
    def composed(self) -> str:
        """What was composed, whatever it is called, tracked by or repeated."""
        config = self.document["config"]
        kept = {k: v for k, v in config.items() if k not in ("repeat", "name", "tracking")}
        choices = sorted(item for item in self.choices.items() if item[0] != "tracking")
        return canonical([choices, kept])

    @cached_property
    def ground(self) -> Ground:
        config = self.document["config"]
        return Ground(
            bool(self.document["modeled"]),
            str(self.document["hashes"].get("corpus", "")),
            str(self.document["time"]),
            canonical([config.get("load"), config.get("seed")]),
            canonical(config.get("slo")),
        )

    @property
    def plan(self) -> str | None:
        plan: str | None = self.document["hashes"].get("plan")
        return plan

    @property
    def latency_valid(self) -> bool:
        return bool(self.document["validity"]["latency_valid"])

    @property
    def saturated(self) -> bool | None:
        saturated: bool | None = self.document["validity"]["saturated"]
        return saturated

    @property
    def doubts(self) -> list[str]:
        """Sentences: what a reader must know before believing this run."""
        return list(self.document["validity"]["reasons"])

    def value(self, metric: str) -> Value:
        stored = self.document["metrics"].get(metric)
        if stored is None:
            return UNKNOWN
        return Value(
            stored["value"], stored["low"], stored["high"], stored["n"], tuple(stored["flags"])
        )

    @cached_property
    def rows(self) -> Any:
        """Measured rows by intended time (pandas.DataFrame); empty where none were kept."""
        path = self.folder / "records.parquet"
        if not path.is_file():
            return pd.DataFrame()
        frame = pd.read_parquet(path)
        frame = frame[frame["phase"] == Phase.MEASURE.value]
        return frame.sort_values(["intended_s", "request_id"], kind="stable").reset_index(drop=True)

    @cached_property
    def calibration_s(self) -> list[float]:
        """Seconds of the noise kernel before and after this run, where recorded."""
        facts = self.document["facts"]
        times = (facts.get("noise.before_s"), facts.get("noise.after_s"))
        return [float(time) for time in times if time]


@dataclass(frozen=True)
class Combination:
    """All repetitions of one composed stack."""

    label: str
    choices: dict[str, str]
    settings: tuple[str, ...]
    runs: tuple[RunResult, ...]

    @cached_property
    def finished(self) -> tuple[RunResult, ...]:
        return tuple(run for run in self.runs if run.status is RunStatus.FINISHED)

    @property
    def status(self) -> RunStatus:
        """Finished only when every repetition is."""
        unfinished = [run.status for run in self.runs if run.status is not RunStatus.FINISHED]
        return unfinished[0] if unfinished else RunStatus.FINISHED

    @property
    def reason(self) -> str | None:
        return next((run.reason for run in self.runs if run.reason), None)

    @property
    def ground(self) -> Ground | None:
        return self.finished[0].ground if self.finished else None

    @property
    def latency_valid(self) -> bool:
        return all(run.latency_valid for run in self.finished)

    @property
    def saturated(self) -> bool:
        """Known to be; a run of few requests claims neither."""
        return any(run.saturated is True for run in self.finished)

    @property
    def failed_requests(self) -> bool:
        return any((run.value("success_rate").value or 0.0) < 1.0 for run in self.finished)

    @property
    def doubts(self) -> list[str]:
        return list(dict.fromkeys(doubt for run in self.finished for doubt in run.doubts))

    def value(self, metric: str) -> Value:
        """Over repetitions: the median of the values, and the envelope of their intervals."""
        values = [run.value(metric) for run in self.finished]
        if len(values) == 1:
            return values[0]
        known = [v for v in values if v.value is not None]
        flags = tuple(dict.fromkeys(flag for v in values for flag in v.flags))
        if not known:
            return Value(None, flags=flags)
        numbers = [v.value for v in known if v.value is not None]
        lows = [v.low for v in known if v.low is not None]
        highs = [v.high for v in known if v.high is not None]
        return Value(
            float(np.median(numbers)),
            min(lows) if len(lows) == len(known) else None,  # one open end leaves the whole open
            max(highs) if len(highs) == len(known) else None,
            sum(v.n for v in known if v.n) or None,
            flags,
        )

    def number(self, metric: str) -> float | None:
        return self.value(metric).value
