"""Read runs back: a study is its run directories, nothing else.

A `Combination` is what was composed; its runs differ only in the repetition. Combinations are
compared only on the same `Ground`: measured with measured, on the same corpus, under the same
load, objectives and kind of clock.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from capibench.errors import DataError
from capibench.records import RunStatus
from capibench.report.runs import Combination, Ground, RunResult

SCHEMA_VERSION = 1
# Groups that name a combination but are no part of the stack.
_NOT_A_PART = ("experiment", "study", "tracking")
_PIPELINE = (
    "corpus",
    "embedder",
    "index",
    "index_tuning",
    "prompt",
    "model",
    "quantization",
    "engine",
    "batching",
    "cache",
    "load",
)
_NO_EFFECT = {"none", "flat", "no", "off"}


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
        """The plainest first, so that the first on a ground is its baseline."""
        groups: dict[str, list[RunResult]] = {}
        for run in self.runs:
            groups.setdefault(run.composed, []).append(run)
        seen: Counter[str] = Counter()
        combinations = [
            Combination(
                self._unique_label(runs[0], seen),
                runs[0].choices,
                runs[0].settings,
                tuple(sorted(runs, key=lambda run: run.repeat)),
            )
            for runs in groups.values()
        ]
        return tuple(sorted(combinations, key=self._order))

    def _order(self, combination: Combination) -> tuple[bool, bool, int, str]:
        """The baseline: called so, or the one with most parts absent or exact; it must have run."""
        plain = sum(combination.choices.get(group) in _NO_EFFECT for group in self.varying)
        called = combination.label.partition(", ")[0] == "baseline"
        return not combination.finished, not called, -plain, combination.label

    @property
    def baseline(self) -> Combination | None:
        return self.combinations[0] if self.combinations else None

    def baseline_of(self, combination: Combination) -> Combination:
        """What `combination` is compared against: the plainest on its ground."""
        return next(c for c in self.combinations if c.ground == combination.ground)

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Groups in which the runs differ, in the order of the pipeline; a part's own groups
        (`cache/tiers`) where those runs differ that have the part."""
        finished = [run for run in self.runs if run.status is RunStatus.FINISHED]
        runs = finished if len(finished) > 1 else self.runs
        groups = sorted({group for run in runs for group in run.choices}, key=_place)

        def differ(group: str) -> bool:
            having = [run for run in runs if "/" not in group or group in run.choices]
            return len({run.choices.get(group) for run in having}) > 1

        return tuple(
            group
            for group in groups
            if group.partition("/")[0] not in _NOT_A_PART and differ(group)
        )

    def _unique_label(self, run: RunResult, seen: Counter[str]) -> str:
        """Two rows never have one name, even where only a configuration's file changed."""
        label = self._label(run)
        seen[label] += 1
        return label if seen[label] == 1 else f"{label} ({seen[label]})"

    def _label(self, run: RunResult) -> str:
        experiment = run.choices.get("experiment")
        if experiment:
            name = experiment.rpartition("/")[2]
        elif self._names_tell:
            name = str(run.document["name"])
        else:
            parts = [run.choices.get(group, "") for group in self._telling]
            parts = [part for part in parts if part and part not in _NO_EFFECT]
            name = " + ".join(parts) or ("baseline" if self.varying else str(run.document["name"]))
        return ", ".join([name, *(s for s in run.settings if s not in self._common_settings)])

    @cached_property
    def _common_settings(self) -> set[str]:
        """Single values that were set for all runs: they tell nothing apart."""
        return set.intersection(*(set(run.settings) for run in self.runs))

    @cached_property
    def _telling(self) -> tuple[str, ...]:
        """The varying groups that a label needs: subgroups (`cache/tiers`) only where they are all
        that tells two combinations apart."""
        main = tuple(group for group in self.varying if "/" not in group)

        def num_told(groups: tuple[str, ...]) -> int:
            return len({tuple(run.choices.get(group) for group in groups) for run in self.runs})

        return main if num_told(main) == num_told(self.varying) else self.varying

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


def _place(group: str) -> tuple[int, str]:
    """Where a group stands in the pipeline; what is no part of it comes last."""
    main = group.partition("/")[0]
    return _PIPELINE.index(main) if main in _PIPELINE else len(_PIPELINE), group


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
    # Deeper down lie earlier attempts of runs that were started again; they are not results.
    paths = sorted(folder.glob("run.json")) or sorted(folder.glob("*/run.json"))
    if not paths:
        raise DataError(f"{folder}: no run.json in it; expected a study's folder")
    info_path = folder / "study.json"
    info = json.loads(info_path.read_text(encoding="utf-8")) if info_path.is_file() else {}
    runs = sorted((read_run(path.parent) for path in paths), key=lambda run: run.position)
    return Study(folder, tuple(runs), info)
