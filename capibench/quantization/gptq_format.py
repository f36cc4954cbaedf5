"""Writes integers as a checkpoint that Transformers and vLLM load: the format of AutoGPTQ.

Whatever method chose the integers, this is how weight-only ones are stored here: `qweight`,
`qzeros`, `scales` and `g_idx` per layer, the rest in 16 bits, the scheme in `config.json`.
Layers are written as they come, so that a model need not fit into memory to be quantized.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from capibench.model.language_model import LanguageModel
from capibench.quantization.packing import pack_gptq
from capibench.quantization.quantized_weight import QuantizedWeight
from capibench.quantization.tensor_files import ShardWriter


def write_gptq(
    model: LanguageModel,
    layers: Iterable[tuple[str, QuantizedWeight]],
    scheme: Mapping[str, Any],
    folder: Path,
) -> dict[str, int]:
    """Write `layers`, and the rest of `model`, into the empty `folder`.

    Args:
        layers: name and integers of each quantized layer; read once, in order.
        scheme: bits, group_size and symmetric of most layers; a layer with other bits is listed
            in the configuration's `dynamic` table.

    Returns:
        bits of each quantized layer, by name.
    """
    writer = ShardWriter(folder)
    bits: dict[str, int] = {}
    for name, weight in layers:
        packed = pack_gptq(weight, zeros_plus_one=scheme["symmetric"])
        writer.add({f"{name}.{part}": tensor for part, tensor in packed.items()})
        bits[name] = weight.bits
    writer.add_rest(model.module, {f"{name}.weight" for name in bits})
    writer.close()
    others = {name: b for name, b in bits.items() if b != scheme["bits"]}
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme["bits"],
        "group_size": scheme["group_size"] or -1,
        "sym": scheme["symmetric"],
        "desc_act": False,
        "lm_head": "lm_head" in bits,
        # Version 1 stores zero points minus one, which leaves no room for a zero point of 0.
        "checkpoint_format": "gptq" if scheme["symmetric"] else "gptq_v2",
        "pack_dtype": "int32",
    }
    if others:
        config["dynamic"] = {f"+:^{re.escape(n)}$": {"bits": b} for n, b in others.items()}
    write_config(model, config, folder)
    return bits


def write_config(
    model: LanguageModel, quantization_config: dict[str, Any] | None, folder: Path
) -> None:
    """`config.json` with the quantization scheme, generation settings and tokenizer."""
    model.module.config.save_pretrained(folder)
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    if quantization_config is not None:
        document["quantization_config"] = quantization_config
        if quantization_config.get("lm_head"):
            document["tie_word_embeddings"] = False  # the head has integers of its own now
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    if model.module.generation_config is not None:
        model.module.generation_config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
