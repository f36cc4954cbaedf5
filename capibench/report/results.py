"""Read runs back: a study is its run directories, nothing else.

A `Combination` is what was composed; its runs differ only in the repetition. Combinations are
compared only on the same `Ground`: measured with measured, on the same corpus, under the same
kind of clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from capibench.errors import DataError
from capibench.measure.stats import Array
from capibench.records import Phase, RequestStatus, RunStatus

SCHEMA_VERSION = 1
# Groups that name a combination but are no part of the stack.
_NOT_A_PART = ("experiment", "study", "tracking")
_NO_EFFECT = {"none", "flat", "no", "off"}


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

    def sentence(self) -> str:
        kind = "Modeled" if self.modeled else "Measured"
        return f"{kind} under {self.time} time, corpus {self.corpus[:12] or 'unknown'}"


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
        """Overrides of single values (`load.rate_per_s=4`), which no choice shows."""
        return tuple(
            override
            for override in self.document["cell"]["overrides"]
            if "." in override.partition("=")[0] and not override.startswith(("hydra", "+hydra"))
        )

    @property
    def ground(self) -> Ground:
        return Ground(
            bool(self.document["modeled"]),
            str(self.document["hashes"].get("corpus", "")),
            str(self.document["time"]),
        )

    @property
    def plan(self) -> str | None:
        plan: str | None = self.document["hashes"].get("plan")
        return plan

    @property
    def latency_valid(self) -> bool:
        return bool(self.document["validity"]["latency_valid"])

    @property
    def saturated(self) -> bool:
        return bool(self.document["validity"]["saturated"])

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
        return any(run.saturated for run in self.finished)

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
        lows = [v.low if v.low is not None else v.value for v in known]
        highs = [v.high if v.high is not None else v.value for v in known]
        return Value(
            float(np.median(numbers)),
            min(low for low in lows if low is not None),
            max(high for high in highs if high is not None),
            sum(v.n for v in known if v.n) or None,
            flags,
        )

    def number(self, metric: str) -> float | None:
        return self.value(metric).value


@dataclass(frozen=True)
class Study:
    """What a study folder holds."""

    folder: Path
    runs: tuple[RunResult, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.info.get("study") or self.folder.name)

    @property
    def command(self) -> str:
        return " ".join(self.info.get("command", []))

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """Baseline first, then as the study lists them."""
        groups: dict[tuple[Any, ...], list[RunResult]] = {}
        for run in self.runs:
            key = (tuple(sorted(run.choices.items())), run.settings)
            groups.setdefault(key, []).append(run)
        combinations = [
            Combination(
                self._label(runs[0]),
                runs[0].choices,
                runs[0].settings,
                tuple(sorted(runs, key=lambda run: run.repeat)),
            )
            for runs in groups.values()
        ]
        baseline = max(combinations, key=self._plainness, default=None)
        rest = [combination for combination in combinations if combination is not baseline]
        rest.sort(key=lambda c: (self._plainness(c)[2] * -1, c.label))
        return tuple([baseline, *rest] if baseline is not None else [])

    def _plainness(self, combination: Combination) -> tuple[bool, bool, int]:
        """The baseline: called so, or the one with most parts absent or exact; it must have run."""
        plain = sum(combination.choices.get(group) in _NO_EFFECT for group in self.varying)
        return bool(combination.finished), combination.label == "baseline", plain

    @property
    def baseline(self) -> Combination | None:
        return self.combinations[0] if self.combinations else None

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Groups in which the runs differ, in the order of the pipeline."""
        finished = [run for run in self.runs if run.status is RunStatus.FINISHED]
        runs = finished if len(finished) > 1 else self.runs
        groups = dict.fromkeys(group for run in runs for group in run.choices)
        return tuple(
            group
            for group in groups
            if group.partition("/")[0] not in _NOT_A_PART
            and len({run.choices.get(group) for run in runs}) > 1
        )

    def _label(self, run: RunResult) -> str:
        experiment = run.choices.get("experiment")
        if experiment:
            name = experiment.rpartition("/")[2]
        elif self._names_tell:
            name = str(run.document["name"])
        else:
            parts = [run.choices.get(group, "") for group in self.varying]
            parts = [part for part in parts if part and part not in _NO_EFFECT]
            name = " + ".join(parts) or ("baseline" if self.varying else str(run.document["name"]))
        return ", ".join([name, *run.settings])

    @cached_property
    def _names_tell(self) -> bool:
        """Whether the runs' own names are one name per combination."""
        names: dict[str, set[tuple[Any, ...]]] = {}
        for run in self.runs:
            names.setdefault(str(run.document["name"]), set()).add(
                tuple(sorted(run.choices.items()))
            )
        return len(names) > 1 and all(len(chosen) == 1 for chosen in names.values())

    @cached_property
    def grounds(self) -> tuple[Ground, ...]:
        """The groups of runs within which comparing is allowed."""
        return tuple(dict.fromkeys(c.ground for c in self.combinations if c.ground is not None))


def read_run(folder: Path) -> RunResult:
    """One run directory.

    Raises:
        DataError: `run.json` is missing, no JSON, or of another schema version.
    """
    path = folder / "run.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; expected a run directory") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema_version: got {version!r}; expected {SCHEMA_VERSION}")
    return RunResult(folder, document)


def read_study(folder: Path) -> Study:
    """All run directories under `folder` (or the one that `folder` itself is).

    Raises:
        DataError: there is no run in it, or a run is malformed.
    """
    paths = sorted(folder.glob("**/run.json"))
    if not paths:
        raise DataError(f"{folder}: no run.json in it; expected a study's folder")
    info_path = folder / "study.json"
    info = json.loads(info_path.read_text(encoding="utf-8")) if info_path.is_file() else {}
    runs = sorted((read_run(path.parent) for path in paths), key=lambda run: run.position)
    return Study(folder, tuple(runs), info)


def paired_e2e_s(a: Sequence[RunResult], b: Sequence[RunResult]) -> tuple[Array, Array]:
    """End-to-end seconds of the same requests in `a` and `b`, by repetition and intended time.

    Only repetitions with the same plan are paired, and only requests that succeeded in both.
    """
    pairs: list[Any] = []
    for one in a:
        for other in b:
            if one.repeat == other.repeat and one.plan == other.plan:
                pairs.append(_joined(one.rows, other.rows))
    frame = pd.concat(pairs) if pairs else pd.DataFrame(columns=["a", "b"], dtype="float64")
    return (
        np.asarray(frame["a"], dtype=np.float64),
        np.asarray(frame["b"], dtype=np.float64),
    )


def _joined(a: Any, b: Any) -> Any:
    def e2e(frame: Any, name: str) -> Any:
        ok = frame[frame["status"] == RequestStatus.OK.value]
        return pd.DataFrame(
            {
                "request_id": ok["request_id"],
                "question_id": ok["question_id"],
                name: ok["done_s"] - ok["intended_s"],
            }
        )

    if a.empty or b.empty:
        return pd.DataFrame(columns=["a", "b"], dtype="float64")
    return e2e(a, "a").merge(e2e(b, "b"), on=["request_id", "question_id"])[["a", "b"]]
