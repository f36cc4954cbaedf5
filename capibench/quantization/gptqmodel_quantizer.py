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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import save_file

from capibench.errors import ConfigError, MissingExtra, RunFailed
from capibench.model.language_model import LanguageModel
from capibench.model.precision import native_device
from capibench.quantization.calibration_tokens import CalibrationSettings
from capibench.quantization.layers import choose_linears
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint
from capibench.quantization.round_to_nearest import check_packed_max_rows
from capibench.quantization.rounding import check_scales
from capibench.quantization.sealed import read_seal, seal
from capibench.quantization.tensor_files import stored_dtype
from capibench.quantization.weight_only import load_weight_only

IN_MULTIPLE = 32  # inputs and outputs that fill whole packed words for every number of bits
_PROCESS = "capibench.quantization.gptqmodel_process"
_SOURCE, _TARGET = "source", "target"  # as that process names them; importing it would load all
_LEFT_OVERS = ("quant_log.csv",)  # timings, which would make every checkpoint another one
_MIN_WORKERS = 2  # with one, gptqmodel's thread pool waits for itself
_log = logging.getLogger(__name__)


@dataclass
class GptqmodelSettings(CalibrationSettings):
    """What GPTQ and AWQ share: the grid, the texts, and how the result is served."""

    bits: int
    group_size: Literal[0, 32, 64, 128]
    symmetric: bool
    skip_modules: list[str]
    batch_size: int
    packed_max_rows: int

    method: ClassVar[str]
    load_only: ClassVar[frozenset[str]] = frozenset({"packed_max_rows"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("sequence_tokens", 16), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least {least}")
        check_packed_max_rows(self.packed_max_rows)

    def params(self) -> dict[str, int | float | str | bool | None]:
        return {
            "method": self.method,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "skip_modules": ",".join(sorted(self.skip_modules)),
            **self.calibration_params(),
            "batch_size": self.batch_size,
            "packed_max_rows": self.packed_max_rows,
        }

    def load(self, model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
        """`model.module`, its linear layers replaced *in place* by packed ones of `folder`, and
        everything else by what stands beside them there (AWQ changes norms).

        Raises:
            DataError: a file is missing or damaged, or was made from other weights.
        """
        facts = read_seal(folder, method=self.method, model=model.fingerprint)
        model, kernel = load_weight_only(model, folder, self.packed_max_rows, facts["kept"])
        return model.changed(self.params()), kernel


def quantize_with_gptqmodel(
    model: LanguageModel,
    texts: Sequence[str],
    folder: Path,
    settings: GptqmodelSettings,
    gptq: Mapping[str, Any],
) -> None:
    """Write a sealed checkpoint into the empty `folder`; `model` is not changed.

    Args:
        gptq: further settings of gptqmodel's GPTQConfig.

    Raises:
        MissingExtra: gptqmodel is not installed.
        ConfigError: the texts are too short, a layer does not divide into groups, or gptqmodel
            does not know this architecture.
        RunFailed: gptqmodel failed; the message ends with its last line.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        raise MissingExtra("gptqmodel", "gptq", f"quantizing with {settings.method}")
    chosen, kept = choose_linears(
        model.module, settings.skip_modules, settings.group_size, IN_MULTIPLE
    )
    check_scales(chosen, settings.bits, settings.group_size, settings.symmetric)
    tokens = settings.draw(model, texts)
    with TemporaryDirectory(prefix="capibench-") as name:
        work = Path(name)
        model.module.save_pretrained(work / _SOURCE)
        model.tokenizer.save_pretrained(work / _SOURCE)
        save_file({"ids": tokens.ids}, str(work / "calibration.safetensors"))
        job = {
            "method": settings.method,
            "bits": settings.bits,
            "group_size": settings.group_size,
            "symmetric": settings.symmetric,
            "excluded": [f"^{re.escape(layer)}$" for layer in kept],
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "gptq": dict(gptq),
            "device": native_device().type,
            "stored_dtype": str(stored_dtype(model.module)).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _log.info(
            "%s: %d layers, %d calibration tokens", settings.method, len(chosen), tokens.ids.numel()
        )
        _run(work)
        for path in (work / _TARGET).iterdir():
            if path.name not in _LEFT_OVERS:
                shutil.move(str(path), folder / path.name)
    quantized = read_quantized_checkpoint(folder).bits
    for layer in chosen:
        if layer not in quantized:
            kept[layer] = f"gptqmodel does not quantize it with {settings.method}"
            _log.warning("%s is not quantized: %s", layer, kept[layer])
    seal(
        folder,
        method=settings.method,
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
