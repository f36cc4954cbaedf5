"""Starts the steps of the ladder as processes of their own and hands on what they report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STEPS = Path(__file__).with_name("steps.py")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class StepFailed(Exception):
    """A step's process ended without finishing; what it had reported is kept."""


def run_step(step: str, spec: dict[str, Any], threads: int) -> Iterator[dict[str, Any]]:
    """The events of one process of steps.py, as they come.

    Raises:
        StepFailed: it did not finish; the message has its exit status and its last line.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, str(STEPS), step, str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
        if process.returncode != 0:
            errors.seek(0)
            last = (errors.read().strip() or "no message").splitlines()[-1]
            raise StepFailed(f"{step}: exit status {process.returncode}: {last}")
