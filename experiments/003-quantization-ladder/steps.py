"""The processes of the quantization ladder: each does one step and ends, so that a crash, an
out-of-memory kill or a leak of one method costs that step only.

    python steps.py prepare|speed SPEC.json      # started by ladder.py

Prints one JSON object a line on standard output: `{"event": "progress", ...}` while it works,
`{"event": "result", ...}` for everything that is measured, as soon as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

LAYER_ROWS, LAYER_TOKENS = 2, 64  # text on which layers are compared with the original's

# Lines for ladder.py leave by this; whatever libraries print goes to standard error.
_events = os.fdopen(os.dup(1), "w", encoding="utf-8")


def emit(event: str, **values: Any) -> None:
    _events.write(json.dumps({"event": event, **values}) + "\n")
    _events.flush()


def main() -> None:
    step, path = sys.argv[1:]
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    os.dup2(2, 1)
    {"prepare": prepare, "speed": speed}[step](spec)


def prepare(spec: dict[str, Any]) -> None:
    """Artifact, its size on disk, quality and layer errors of one variant.

    Parts that fail are reported and do not take the others with them; without an artifact there
    is nothing else.
    """
    from capibench.artifacts import ArtifactStore
    from capibench.prepare import Preparation
    from capibench.quantization.footprint import disk_bytes
    from capibench.stack import build_choices

    choices = build_choices(spec["config"])
    store = ArtifactStore(Path(spec["artifacts"]))
    preparation = Preparation(choices, spec["config"], store)
    if preparation.quantizes:
        artifact = preparation.quantized_artifact
        total, weights = disk_bytes(artifact.path)
        emit(
            "result",
            artifact=artifact.path.relative_to(store.root).as_posix(),
            quantize_s=artifact.make_seconds,
            artifact_reused=artifact.reused,
            disk_bytes=total,
            disk_weight_bytes=weights,
        )
        attempt("layer errors", lambda: layer_errors(preparation))
    else:
        emit("result", artifact=None, quantize_s=None, **saved_size(choices, store))
    if choices.model.meaningful:
        attempt("quality", lambda: {"quality": preparation.text_quality})


def attempt(part: str, work: Callable[[], dict[str, Any]]) -> None:
    try:
        emit("result", **work())
    except Exception as error:  # noqa: BLE001 - reported by name; the other parts still count
        emit("failure", part=part, reason=f"{type(error).__name__}: {error}")


def saved_size(choices: Any, store: Any) -> dict[str, int]:
    """Bytes on disk of the unquantized model in the precision it is served in: written as
    Transformers writes it, counted, and thrown away."""
    from capibench.quantization.footprint import disk_bytes

    def make(folder: Path) -> None:
        checkpoint = folder / "checkpoint"
        choices.model.load().module.save_pretrained(checkpoint)
        total, weights = disk_bytes(checkpoint)
        shutil.rmtree(checkpoint)
        counted = {"disk_bytes": total, "disk_weight_bytes": weights}
        (folder / "size.json").write_text(json.dumps(counted), encoding="utf-8")

    artifact = store.get_or_make("checkpoint_size", {"model": choices.model.source_key()}, make)
    sizes: dict[str, int] = json.loads((artifact.path / "size.json").read_text(encoding="utf-8"))
    return sizes


def layer_errors(preparation: Any) -> dict[str, Any]:
    """How far each layer's weights and outputs are from the original's, on text of the corpus."""
    import torch

    from capibench.quantization.layer_errors import layer_errors as compare_layers

    choices = preparation.choices
    reference = choices.model.load()
    quantized, _ = choices.quantization.load(
        choices.model.load(), preparation.quantized_artifact.path
    )
    ids: list[int] = []
    for passage in preparation.corpus.passages:
        ids += reference.tokenizer(passage.text, add_special_tokens=False)["input_ids"]
        if len(ids) >= LAYER_ROWS * LAYER_TOKENS:
            break
    tokens = torch.tensor(ids[: LAYER_ROWS * LAYER_TOKENS]).view(-1, LAYER_TOKENS)
    found = compare_layers(reference.module, quantized.module, [tokens])
    return {"layer_errors": [asdict(layer) for layer in found]}


def speed(spec: dict[str, Any]) -> None:
    """One interleaved study of all members of a group, shape by shape."""
    import torch

    from capibench.config import build
    from capibench.measure import noise
    from capibench.quantization.bandwidth import (
        bytes_read_per_step,
        floor_seconds,
        read_bandwidth,
    )
    from capibench.quantization.speed import measure_speed

    threads = spec["num_threads"]
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bandwidth = read_bandwidth(threads, spec["bandwidth_s"], device)
    emit("result", bandwidth_bytes_per_s=bandwidth, num_threads=threads, device=device)
    models = {}
    for member in spec["members"]:
        model = build(member["model"], "model", spec["plugins"]).load()
        if member["artifact"] is not None:
            quantization = build(member["quantization"], "quantization", spec["plugins"])
            model, _ = quantization.load(model, Path(spec["artifacts"]) / member["artifact"])
        models[member["name"]] = model
        emit("progress", text=f"{member['name']} loaded")
    for shape in spec["shapes"]:
        before_s = noise.calibrate()
        table = measure_speed(
            {name: models[name] for name in shape["members"]},
            batch_sizes=shape["batch_sizes"],
            prompt_tokens=shape["prompt_tokens"],
            new_tokens=shape["new_tokens"],
            rounds=spec["rounds"],
            seed=spec["seed"],
            baseline=shape["baseline"],
            progress=lambda text: emit("progress", text=text),
        )
        rows = table.to_rows()
        for row in rows:
            for against in shape["against"]:
                ratio = table.speedup(row["model"], row["batch_size"], row["phase"], against)
                for name in ("value", "low", "high", "tie"):
                    row[f"speedup.{against}.{name}"] = getattr(ratio, name)
            if row["phase"] == "decode":
                row["step_bytes"] = bytes_read_per_step(
                    models[row["model"]].module, row["batch_size"]
                )
                row["floor_s"] = floor_seconds(row["step_bytes"], bandwidth)
                row["over_floor"] = row["tpot_s"] / row["floor_s"]
        emit("result", rows=rows, drift=noise.drift(before_s, noise.calibrate()))


if __name__ == "__main__":
    main()
