"""What a run's numbers depend on besides its configuration (METHOD, rule 19)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil


def describe() -> dict[str, Any]:
    """Code, dependencies, hardware and threads of this process; JSON-serialisable."""
    return {
        "code": _code(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "cpu": _cpu(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": _threads(),
        "gpu": _gpu(),
    }


@cache
def _packages() -> dict[str, str]:
    """Version of every installed distribution. Each property of one parses its file anew."""
    parsed = (distribution.metadata for distribution in metadata.distributions())
    return dict(sorted((found["Name"], found["Version"]) for found in parsed if found["Name"]))


def _code() -> dict[str, Any]:
    """Commit and state of the checkout that this package was imported from."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain")
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):  # no git here: the commit is unknown
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": model,
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": len(affinity(0)) if affinity else os.cpu_count(),
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        "amx_int8": "amx_int8" in flags,
    }


def _threads() -> dict[str, Any]:
    """Thread counts of the numeric libraries that this process has loaded."""
    from threadpoolctl import threadpool_info

    threads: dict[str, Any] = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "pools": [
            {key: pool.get(key) for key in ("user_api", "internal_api", "num_threads", "version")}
            for pool in threadpool_info()
        ],
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        threads["torch"] = torch.get_num_threads()
    faiss = sys.modules.get("faiss")
    if faiss is not None:
        threads["faiss"] = faiss.omp_get_max_threads()
    return threads


def _gpu() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }
