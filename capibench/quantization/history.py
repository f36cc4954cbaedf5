"""What was quantized here, when, and how it went: one line per event, never rewritten."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capibench.errors import DataError
from capibench.quantization.result import QuantizationResult

QUANTIZED = "quantized"
BENCHMARKED = "benchmarked"
FAILED = "failed"
_FIGURES = ("compression_ratio", "memory_reduction", "accuracy_loss", "speedup_factor")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """An append-only JSON-lines file, shared by all processes that use the same folder."""

    path: Path

    def add(self, event: str, result: QuantizationResult) -> None:
        """Append `result`; a later line of the same id supersedes an earlier one."""
        self._append({"event": event, "result": result.to_json()})

    def add_failure(self, failure: dict[str, Any]) -> None:
        """Append a quantization that ended without a result."""
        self._append({"event": FAILED, "failure": failure})

    def results(self) -> list[QuantizationResult]:
        """Each id once, as its last line says, in the order of its first line."""
        latest: dict[str, QuantizationResult] = {}
        for line in self._lines():
            if line["event"] != FAILED:
                latest[line["result"].result_id] = line["result"]
        return list(latest.values())

    def failures(self) -> list[dict[str, Any]]:
        """Quantizations that ended without a result, oldest first."""
        return [line["failure"] for line in self._lines() if line["event"] == FAILED]

    def statistics(self) -> dict[str, Any]:
        """Counts, costs and means by method; a mean is over what was measured, else None."""
        results, failures = self.results(), self.failures()
        by_method: dict[str, dict[str, Any]] = {}
        for method in sorted({str(result.config["method"]) for result in results}):
            own = [result for result in results if result.config["method"] == method]
            by_method[method] = {
                "num_results": len(own),
                "num_benchmarked": sum(result.speedup_factor is not None for result in own),
                **{f"mean_{name}": _mean([getattr(r, name) for r in own]) for name in _FIGURES},
            }
        made = [result for result in results if not result.validation_metrics["reused"]]
        return {
            "num_results": len(results),
            "num_made": len(made),
            "num_reused": len(results) - len(made),
            "num_benchmarked": sum(result.speedup_factor is not None for result in results),
            "num_failed": len(failures),
            "quantization_seconds": sum(result.quantization_time_seconds for result in made),
            "by_method": by_method,
        }

    def _append(self, document: dict[str, Any]) -> None:
        data = json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                data = b"\n" + data  # a process died in the middle of its line: keep to our own
            file.write(data)  # one call at the end of the file: lines of two processes never mix

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for number, raw in enumerate(self.path.read_bytes().split(b"\n"), start=1):
            if not raw:
                continue
            try:
                yield _parse(json.loads(raw))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                _log.warning("%s: line %d is damaged and skipped: %s", self.path, number, error)


def _parse(line: dict[str, Any]) -> dict[str, Any]:
    event = line["event"]
    if event == FAILED:
        return {"event": event, "failure": dict(line["failure"])}
    if event not in (QUANTIZED, BENCHMARKED):
        raise DataError(f"event: got {event!r}")
    return {"event": event, "result": QuantizationResult.from_json(line["result"])}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
