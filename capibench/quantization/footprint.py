"""What one model costs in memory and on disk, seen by a process that does nothing else.

    python -m capibench.quantization.footprint SPEC.json      # prints one JSON object

In a process that has loaded other models before, freed memory still counts and the peak is
somebody else's. So a new one is started (by `memory_of`) that only loads the model, puts the
artifact's weights into it and decodes a few tokens.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from capibench.errors import RunFailed
from capibench.measure import memory

WEIGHT_FILES = (".safetensors", ".bin")  # the others describe: configuration, tokenizer, hashes
_STORE_FILE = "meta.json"  # the artifact store's own, not part of the checkpoint


@dataclass(frozen=True, slots=True)
class FootprintSpec:
    """What the process loads and decodes."""

    model: Mapping[str, Any]  # the resolved node of the configuration tree
    quantization: Mapping[str, Any]
    plugins: tuple[str, ...]
    artifact: str | None  # folder; None: the method has written none
    num_threads: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    seed: int  # of the token ids


@dataclass(frozen=True, slots=True)
class Footprint:
    """Counted and measured bytes of one model in a process of its own (RSS of the process)."""

    model_bytes: int  # parameters and buffers in memory, tied storage once
    disk_bytes: int | None  # all files of the artifact; None: nothing was written
    disk_weight_bytes: int | None  # those of them that hold weights
    imported_bytes: int  # resident after the imports, before any weight
    resident_bytes: int  # after loading
    load_peak_bytes: int  # the most until then: the unquantized weights are loaded first
    decode_peak_bytes: int  # the most while decoding
    gpu_peak_bytes: int | None  # allocated on the GPU while decoding; None: the model is on the CPU
    load_s: float
    prefill_s: float  # one call, after one that warms up: for planning, not for comparing
    step_s: float  # median of its decode steps
    step_bytes: int  # weights that a decode step reads
    kernel: str  # what multiplies, in the method's own words
    dtype: str
    fingerprint: str


def disk_bytes(folder: Path) -> tuple[int, int]:
    """`(all, weights)`: bytes of the files under `folder`, the artifact store's own left out."""
    sizes = [
        (path.suffix, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != _STORE_FILE
    ]
    return sum(size for _, size in sizes), sum(s for suffix, s in sizes if suffix in WEIGHT_FILES)


def memory_of(spec: FootprintSpec) -> Footprint:
    """Measure `spec` in a new process.

    Raises:
        RunFailed: the process ended without a result; the message has its last line.
    """
    threads = str(spec.num_threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "capibench.quantization.footprint", str(path)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RunFailed(f"footprint: exit status {done.returncode}: {last}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def measure(spec: FootprintSpec) -> Footprint:
    """Load and decode in this process, which should have done nothing else."""
    import torch

    from capibench.config import build
    from capibench.quantization.bandwidth import bytes_read_per_step
    from capibench.quantization.bytes import resident_bytes
    from capibench.quantization.speed import time_generation

    torch.set_num_threads(spec.num_threads)
    source = build(spec.model, "model", spec.plugins)
    quantization = build(spec.quantization, "quantization", spec.plugins)
    gc.collect()
    imported = memory.resident_bytes()
    memory.reset_peak()
    began_s = perf_counter()
    model = source.load()
    kernel = "none"
    written, weights = None, None
    if spec.artifact is not None:
        written, weights = disk_bytes(Path(spec.artifact))
        model, kernel = quantization.load(model, Path(spec.artifact))
    load_s = perf_counter() - began_s
    gc.collect()
    load_peak = memory.peak_bytes()
    resident = memory.resident_bytes()

    memory.reset_peak()
    vocabulary = int(model.module.config.vocab_size)
    shape = (spec.batch_size, spec.prompt_tokens)
    prompts = np.random.default_rng(spec.seed).integers(0, vocabulary, size=shape).tolist()
    on_gpu = model.module.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    time_generation(model, prompts, 1)
    prefill_s, steps_s = time_generation(model, prompts, spec.new_tokens)
    return Footprint(
        model_bytes=resident_bytes(model.module),
        disk_bytes=written,
        disk_weight_bytes=weights,
        imported_bytes=imported,
        resident_bytes=resident,
        load_peak_bytes=load_peak,
        decode_peak_bytes=memory.peak_bytes(),
        gpu_peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        load_s=load_s,
        prefill_s=prefill_s,
        step_s=float(np.median(steps_s)),
        step_bytes=bytes_read_per_step(model.module, spec.batch_size),
        kernel=kernel,
        dtype=model.dtype,
        fingerprint=model.fingerprint,
    )


def main(arguments: list[str]) -> None:
    document = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    spec = FootprintSpec(**{**document, "plugins": tuple(document["plugins"])})
    sys.stdout.write(json.dumps(asdict(measure(spec))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
