"""No tracker: the run's own files are all there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class NoTracker:
    """Tells nobody."""

    def log_run(self, run_dir: Path, default_uri: str) -> None:
        """Nothing to tell."""
