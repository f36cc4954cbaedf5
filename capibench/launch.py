"""One run, each in a process of its own: clean memory figures, and a crash kills one cell only.

The launching process stays light. It writes `spec.json`, starts the run's process (load, warm up,
measure, write), and then tells the tracker. Where that process finds artifacts missing, another
one makes them first, so that making them leaves no trace in the memory of the one that measures.
Files first, tracker second: whatever fails, the rows are on disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from capibench.config import build, check_finite
from capibench.records import RunStatus
from capibench.run_folder import (
    CONFIG_ERROR_EXIT,
    NOT_PREPARED_EXIT,
    RunSpec,
    run_document,
    utc_now,
    write_json,
)


def launch(spec: RunSpec, run_dir: Path) -> tuple[dict[str, Any], int]:
    """Run `spec` in processes of its own.

    Returns:
        its `run.json`, whatever happened, and the exit status of the process that ended it:
        `CONFIG_ERROR_EXIT` when the configuration was refused before any work.

    Raises:
        ConfigError: it holds a number that cannot be written; nothing was.
    """
    check_finite(spec.config, "")
    run_dir.mkdir(parents=True, exist_ok=True)
    _set_aside(run_dir)
    spec.write(run_dir)
    started_at = utc_now()
    try:
        code = _run_step("measure", spec, run_dir)
        if code == NOT_PREPARED_EXIT:
            code = _run_step("prepare", spec, run_dir)
            if code == 0:
                code = _run_step("measure", spec, run_dir)
    except KeyboardInterrupt:
        _record_death(spec, run_dir, started_at, -signal.SIGINT)
        raise
    document = run_dir / "run.json"
    if not document.is_file():
        _record_death(spec, run_dir, started_at, code)
    outcome = json.loads(document.read_text(encoding="utf-8"))
    if code != CONFIG_ERROR_EXIT:
        _track(spec, run_dir, outcome)
    return outcome, code


def _set_aside(run_dir: Path) -> None:
    """A cell that is run again keeps what its earlier attempts left, in folders of their own."""
    if not (run_dir / "spec.json").is_file():
        return
    attempt = run_dir / f"attempt-{len(list(run_dir.glob('attempt-*'))) + 1}"
    attempt.mkdir()
    for name in ("run.json", "spec.json", "records.parquet", "journal.jsonl", "cache_l2"):
        if (run_dir / name).exists():
            (run_dir / name).rename(attempt / name)


def _run_step(step: str, spec: RunSpec, run_dir: Path) -> int:
    threads = str(spec.config["time"].get("num_threads", 1))
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = threads
    environment["TOKENIZERS_PARALLELISM"] = "false"
    command = [sys.executable, "-m", "capibench.runner", step, str(run_dir)]
    # Standard output belongs to the launcher's one JSON line.
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _record_death(spec: RunSpec, run_dir: Path, started_at: str, code: int) -> None:
    """The process died without a word: keep its finished rows, say what is known."""
    from capibench.journal import recover

    num_rows = recover(run_dir)
    reason = f"exit status {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            reason = f"killed by {signal.Signals(-code).name}"
    write_json(
        run_dir / "run.json",
        run_document(
            spec,
            run_dir,
            status=RunStatus.CRASHED,
            reason=f"the run's process ended early ({reason}); {num_rows} finished rows were kept",
            started_at=started_at,
        ),
    )


def _track(spec: RunSpec, run_dir: Path, document: dict[str, Any]) -> None:
    """Tell the tracker, and record in `run.json` whether it heard."""
    tracking: dict[str, str] = {"status": "logged"}
    try:
        tracker = build(spec.config["tracking"], "tracking", spec.config["plugins"])
        tracker.log_run(run_dir, default_uri=default_tracking_uri(Path(spec.home)))
    except Exception as error:  # noqa: BLE001 - a tracker that fails must lose nothing and stop nothing
        tracking = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        sys.stderr.write(f"tracking failed (the run's files are kept): {tracking['reason']}\n")
    document["tracking"] = tracking
    write_json(run_dir / "run.json", document)


def default_tracking_uri(root: Path) -> str:
    """A SQLite file beside the runs, absolute: MLflow's own default follows the working folder."""
    return f"sqlite:///{root.resolve() / 'mlflow.db'}"
