"""What stands in a run's folder: `spec.json` before it starts, `run.json` once it has ended.

The launching process, the run's own processes and the study all read and write them here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capibench.records import RunStatus

# Exit statuses of a run's process.
CONFIG_ERROR_EXIT = 2  # it refused its configuration
NOT_PREPARED_EXIT = 3  # artifacts are missing: prepare them, then try again


@dataclass(frozen=True)
class RunSpec:
    """What the processes of a run need to know; `spec.json` in its directory."""

    config: dict[str, Any]  # resolved
    choices: dict[str, str]  # group → chosen option
    overrides: list[str]  # of a study's cell: those that tell it from the others
    study: str | None
    position: int | None  # in the order in which the study ran its cells
    home: str  # where artifacts are kept

    @staticmethod
    def read(run_dir: Path) -> RunSpec:
        return RunSpec(**json.loads((run_dir / "spec.json").read_text(encoding="utf-8")))

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / "spec.json", asdict(self))


def write_json(path: Path, document: object) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of one."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def utc_now() -> str:
    """Wall time for the record only; durations come from the run's clock."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_document(
    spec: RunSpec,
    run_dir: Path,
    *,
    status: RunStatus,
    reason: str | None,
    started_at: str,
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`run.json`: a run without a result has the same shape, with nothing measured in it."""
    return {
        "schema_version": 1,
        "run_id": run_dir.name,
        "name": spec.config["name"],
        "study": spec.study,
        "cell": {
            "overrides": spec.overrides,
            "choices": spec.choices,
            "repeat": spec.config["repeat"],
            "position": spec.position,
        },
        "status": str(status),
        "reason": reason,
        "started_at": started_at,
        "ended_at": utc_now(),
        "config": spec.config,
        "time": spec.choices.get("time", "real"),
        "modeled": None,
        "environment": {},
        "hashes": {},
        "facts": {},
        "components": {},
        "metrics": {},
        "validity": {"latency_valid": False, "saturated": None, "reasons": []},
        **(measured or {}),
    }
