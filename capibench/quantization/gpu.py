"""The same checkpoints on a GPU: Transformers and gptqmodel bring kernels made for it.

Not run by this project's tests, which have no GPU. The kernels that were really chosen are read
off the loaded layers and recorded, so that a slow one cannot pass unnoticed.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM

from capibench.errors import MissingExtra
from capibench.model.language_model import LanguageModel
from capibench.model.pretrained import ready


def load_on_gpu(model: LanguageModel, folder: Path) -> tuple[LanguageModel, str]:
    """The checkpoint of `folder` on the device of `model`, and the classes of its layers.

    Raises:
        MissingExtra: gptqmodel is not installed.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        raise MissingExtra("gptqmodel", "gptq", "a weight-only quantized model on a GPU")
    device = model.module.device
    module = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=model.module.dtype,
        attn_implementation="sdpa",
        device_map={"": device},
        local_files_only=True,
    )
    layers = Counter(type(m).__name__ for m in module.modules() if hasattr(m, "qweight"))
    kernels = ", ".join(f"{count} x {name}" for name, count in sorted(layers.items()))
    return replace(model, module=ready(module)), f"gptqmodel: {kernels}"
