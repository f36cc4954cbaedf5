"""Runs gptqmodel in a process of its own: `python -m capibench.quantization.gptqmodel_process JOB`.

Importing it patches safetensors and transformers, sets environment variables and starts threads
that never end; quantizing draws progress bars, writes a `logs` folder into the working directory
and holds a second copy of the model. None of that may reach the process that measures.

JOB is the folder that `gptqmodel_quantizer` fills; what goes wrong for a reason that the user can
mend is written there as `problem.json`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, AWQConfig, GPTQConfig, GPTQModel
from gptqmodel.looper.awq_processor import AWQProcessor
from gptqmodel.models.auto import SUPPORTED_MODELS
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from capibench.quantization.awq_search import best_clip, best_scale

SOURCE = "source"
TARGET = "target"
JOB_FILE = "job.json"
CALIBRATION_FILE = "calibration.safetensors"
PROBLEM_FILE = "problem.json"


def run(folder: Path) -> None:
    """Quantize `folder / SOURCE` into `folder / TARGET`, as `job.json` says.

    All arithmetic is float32, whatever the model is served in: its 16-bit products have no
    hardware on many CPUs, and scales searched in bf16 would be rounded twice.
    """
    job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    source = folder / SOURCE
    model_type = AutoConfig.from_pretrained(str(source)).model_type
    if model_type not in SUPPORTED_MODELS:
        problem = {"model_type": model_type, "supported": sorted(SUPPORTED_MODELS)}
        (folder / PROBLEM_FILE).write_text(json.dumps(problem), encoding="utf-8")
        return
    # "-:" excludes what the pattern matches; "original" packs without compiling an extension;
    # without `fallback=None` a layer that saw few tokens would be rounded to nearest, silently.
    common: dict[str, Any] = {
        "bits": job["bits"],
        "group_size": job["group_size"] or -1,
        "sym": job["symmetric"],
        "dynamic": {f"-:{pattern}": {} for pattern in job["excluded"]} or None,
        "device": job["device"],
        "offload_to_disk": False,
        "pack_impl": "original",
        "fallback": None,
    }
    backend = BACKEND.AUTO
    if job["method"] == "awq":
        settings: Any = AWQConfig(**common)
        backend = BACKEND.AWQ_TORCH  # the packing of the others needs a GPU
        AwqTorchLinear.SUPPORTS_DTYPES = [*AwqTorchLinear.SUPPORTS_DTYPES, torch.float32]
        AWQProcessor._compute_best_clip = _compute_best_clip
        AWQProcessor._compute_best_scale = _compute_best_scale
    else:
        settings = GPTQConfig(**common, **job["gptq"])
    model = GPTQModel.load(str(source), settings, dtype=torch.float32)
    ids = load_file(str(folder / CALIBRATION_FILE))["ids"]
    model.quantize(
        [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids.tolist()],
        batch_size=job["batch_size"],
        backend=backend,
    )
    dtype = getattr(torch, job["stored_dtype"])
    for parameter in model.model.parameters():  # scales are buffers, float16 already
        parameter.data = parameter.data.to(dtype)
    for name, buffer in model.model.named_buffers():
        if name.endswith(".bias") and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    model.model.config.dtype = dtype
    model.save(str(folder / TARGET), max_shard_size="1GB")


def _quantized(processor: Any, values: Tensor) -> Tensor:
    out = torch.empty_like(values)
    processor._pseudo_quantize_tensor_into(values, out)
    return out


def _compute_best_clip(self: Any, w: Tensor, input_feat: Tensor) -> Tensor:
    """What stands in for gptqmodel's method of this name; see `awq_search`."""
    group_size = self.qcfg.group_size if self.qcfg.group_size > 0 else w.shape[1]
    with torch.inference_mode():
        return best_clip(w, input_feat, group_size, partial(_quantized, self))


def _compute_best_scale(
    self: Any,
    x: Tensor,
    w_mean: Tensor,
    x_mean: Tensor,
    module2inspect: nn.Module,
    linears2scale: list[nn.Linear],
    fp16_output: Any,
    kwargs: dict[str, Any],
) -> tuple[Tensor, float]:
    """What stands in for gptqmodel's method of this name; see `awq_search`."""
    weights = [linear.weight.data for linear in linears2scale]
    device = weights[0].device
    hint = getattr(self._scale_context, "prev_scale", None)
    with torch.inference_mode():
        scales, error = best_scale(
            weights,
            w_mean.view(-1).to(device) * (1.0 if hint is None else float(hint)),
            x_mean.view(-1).to(device),
            partial(_quantized, self),
            lambda: (
                part.to(device) for part in self._iter_reference_output_chunks(x, fp16_output)
            ),
            lambda: self._iter_module_forward_outputs(x, module2inspect, kwargs),
        )
    return scales.cpu(), error


if __name__ == "__main__":
    run(Path(sys.argv[1]))
