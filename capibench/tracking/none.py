"""No tracking: run directories and the report are complete without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class NoTracker:
    """Records nothing anywhere."""

    def open(self, default_uri: str) -> None:
        """Nothing to make ready."""

    def log_run(self, run_dir: Path, default_uri: str) -> None:
        """Nothing to record."""
