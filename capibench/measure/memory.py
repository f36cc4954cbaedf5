"""Resident and peak memory of this process, read from the operating system."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Bytes of physical memory that the process holds now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Let the peak start from now, where the kernel offers it (Linux: clear_refs, value 5)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Most bytes held since `reset_peak` (or since the start, where that cannot be reset)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
