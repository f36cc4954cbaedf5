"""The seam of experiment tracking: told about a run after its files are written."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from capibench.errors import CapiBenchError


class TrackingError(CapiBenchError):
    """The tracker could not be told about a run; its files are complete nevertheless."""


class Tracker(Protocol):
    """Built from yaml without doing anything; called by the launching process only."""

    def open(self, default_uri: str) -> None:
        """Make the store ready. A study calls it once before its runs: two processes that use a
        new SQLite store at the same time break it."""

    def log_run(self, run_dir: Path, default_uri: str) -> None:
        """Record one ended run from its `run.json` and `records.parquet`."""
