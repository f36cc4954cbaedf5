"""Drives gptqmodel, the maintained successor of AutoGPTQ and AutoAWQ, for GPTQ and AWQ alike.

The model is written to a temporary folder, quantized from there by a process of its own (see
`gptqmodel_process`) and moved into the artifact, so that any model in memory can be quantized,
whether or not it came from a folder, and stays as it is.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from capibench.errors import ConfigError, MissingExtra, RunFailed
from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_device
from capibench.quantization.calibration_tokens import choose_tokens
from capibench.quantization.layers import choose_linears
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint
from capibench.quantization.sealed import seal
from capibench.quantization.tensor_files import stored_dtype

IN_MULTIPLE = 32  # inputs and outputs that fill whole packed words for every number of bits
_PROCESS = "capibench.quantization.gptqmodel_process"
_SOURCE, _TARGET = "source", "target"  # as that process names them; importing it would load all
_LEFT_OVERS = ("quant_log.csv",)  # timings, which would make every checkpoint another one
_MIN_WORKERS = 2  # with one, gptqmodel's thread pool waits for itself
_log = logging.getLogger(__name__)


def check_calibration(sequences: int, length: int, batch_size: int, seed: int) -> None:
    """ValueError for knobs out of range, as a dataclass raises it."""
    for name, value, least in (
        ("num_samples", sequences, 1),
        ("sequence_tokens", length, 16),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}; expected at least {least}")


def quantize_with_gptqmodel(
    model: LanguageModel,
    texts: Sequence[str],
    folder: Path,
    *,
    method: str,
    bits: int,
    group_size: int,
    symmetric: bool,
    skip_modules: Sequence[str],
    num_samples: int,
    sequence_tokens: int,
    batch_size: int,
    seed: int,
    gptq: Mapping[str, Any],
) -> None:
    """Write a sealed checkpoint of `method` ("gptq" or "awq") into the empty `folder`.

    Args:
        group_size: inputs that share a scale; 0: a whole output channel.
        sequence_tokens: tokens of a sequence.
        gptq: further settings of gptqmodel's GPTQConfig.

    Raises:
        MissingExtra: gptqmodel is not installed.
        ConfigError: the texts are too short, a layer does not divide into groups, or gptqmodel
            does not know this architecture.
        RunFailed: gptqmodel failed; the message ends with its last line.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        raise MissingExtra("gptqmodel", "gptq", f"quantizing with {method}")
    tokens = choose_tokens(model, texts, num_samples, sequence_tokens, seed)
    chosen, kept = choose_linears(model.module, skip_modules, group_size, IN_MULTIPLE)
    with TemporaryDirectory(prefix="capibench-") as name:
        work = Path(name)
        model.module.save_pretrained(work / _SOURCE)
        model.tokenizer.save_pretrained(work / _SOURCE)
        save_file({"ids": tokens.ids}, str(work / "calibration.safetensors"))
        job = {
            "method": method,
            "bits": bits,
            "group_size": group_size,
            "symmetric": symmetric,
            "excluded": [f"^{re.escape(layer)}$" for layer in kept],
            "batch_size": batch_size,
            "seed": seed,
            "gptq": dict(gptq),
            "device": native_device().type,
            "stored_dtype": str(stored_dtype(model.module)).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _log.info("%s: %d layers, %d calibration tokens", method, len(chosen), tokens.ids.numel())
        _run(work)
        for path in (work / _TARGET).iterdir():
            if path.name not in _LEFT_OVERS:
                shutil.move(str(path), folder / path.name)
    quantized = read_quantized_checkpoint(folder).bits
    for layer in chosen:
        if layer not in quantized:
            kept[layer] = f"gptqmodel does not quantize it with {method}"
            _log.warning("%s is not quantized: %s", layer, kept[layer])
    seal(
        folder,
        method=method,
        model=model.fingerprint,
        facts={"kept": kept, "calibration": tokens.facts()},
    )


def _run(work: Path) -> None:
    import capibench

    threads = torch.get_num_threads()
    root = str(Path(capibench.__file__).resolve().parent.parent)
    environment = {
        **os.environ,
        "GPTQMODEL_CPU_WORKERS": str(max(_MIN_WORKERS, threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", _PROCESS, str(work)],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    problem = work / "problem.json"
    if problem.is_file():
        found = json.loads(problem.read_text(encoding="utf-8"))
        raise ConfigError(
            "quantization",
            f"got a model of type {found['model_type']!r}, which gptqmodel cannot quantize; "
            f"expected one of {', '.join(found['supported'])}",
        )
    if ended.returncode != 0:
        lines = [line.strip() for line in ended.stdout.splitlines() if line.strip()]
        _log.error("gptqmodel's last output:\n%s", "\n".join(lines[-40:]))
        last = lines[-1] if lines else "no output"
        raise RunFailed(f"gptqmodel ended with status {ended.returncode}: {last}")
