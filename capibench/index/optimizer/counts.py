"""What was done through one optimizer since it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Counts:
    """Of one index; 0 is what nobody has done yet."""

    builds: int = 0
    tuning_s: float = 0.0
    searches: int = 0  # calls; a batch is one
    queries: int = 0
    search_s: float = 0.0
    added: int = 0
    deleted: int = 0
    optimizations: int = 0
    improvements: int = 0  # optimizations that changed the index
    rechecks: int = 0  # of recall, after changes
    retunings: int = 0  # because the recall did not hold


def statistics(by_index: Mapping[str, Counts]) -> dict[str, Any]:
    """Totals, and the same by index; JSON. A mean is over what was measured, else None."""
    total = Counts()
    for counts in by_index.values():
        for field in fields(Counts):
            value = getattr(total, field.name) + getattr(counts, field.name)
            setattr(total, field.name, value)
    named = {name: _with_mean(counts) for name, counts in sorted(by_index.items())}
    return {**_with_mean(total), "by_index": named}


def _with_mean(counts: Counts) -> dict[str, Any]:
    mean_ms = counts.search_s / counts.queries * 1e3 if counts.queries else None
    return {**asdict(counts), "mean_search_ms_per_query": mean_ms}
