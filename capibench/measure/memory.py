"""Resident and peak memory of a run, read from the operating system.

A run is this process and the processes that it started (replicas of an engine). Memory that they
share, mostly the code of libraries, counts in each of them, so that sums of several processes are
upper bounds; and so is a sum of peaks, which need not come at the same time.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Bytes of physical memory that this process and its descendants hold now."""
    me = psutil.Process()
    total = int(me.memory_info().rss)
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            total += int(child.memory_info().rss)
    return total


def reset_peak() -> None:
    """Let the peak of this process start from now, where the kernel offers it (Linux: clear_refs,
    value 5)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Most bytes that this process held since `reset_peak` (or since its start, where that cannot
    be reset)."""
    peak = _high_water_mark("self")
    if peak is not None:
        return peak
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def children_peak_bytes() -> int | None:
    """Sum of the peaks of the living descendants, each since its own `reset_peak`; None where the
    system does not tell them of other processes."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        peak = _high_water_mark(str(child.pid))
        if peak is not None:
            total += peak
        elif child.is_running():
            return None
    return total


def _high_water_mark(process: str) -> int | None:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return None
