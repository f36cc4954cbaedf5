"""From a stored artifact back to a model, with its bytes counted and its layers checked."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from capibench.artifacts import META_NAME, Artifact, ArtifactMissing, ArtifactStore
from capibench.errors import ConfigError, DataError
from capibench.model.language_model import LanguageModel
from capibench.model.precision import Precision
from capibench.model.pretrained import load_folder, source_key
from capibench.quantization.bytes import resident_bytes
from capibench.quantization.footprint import disk_bytes
from capibench.quantization.layer_errors import LayerError, layer_errors
from capibench.quantization.quantization import Quantization
from capibench.quantization.result import QuantizationResult, storable
from capibench.run_folder import utc_now

MB = 1_000_000  # bytes
_CHECK_TOKENS = 32
_CHECK_SEED = 0
_ROUNDED = 2.0**-7  # a parameter that differs by more was changed, not stored in fewer bits


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A quantized model in memory, and what it was before."""

    model: LanguageModel
    kernel: str
    dtype: str  # that the original is served in
    original_bytes: int  # parameters and buffers in memory
    original_checkpoint_bytes: int  # parameters alone: what a file of this precision holds
    quantized_bytes: int
    load_seconds: float  # of the quantized weights, without loading the original
    layer_errors: Sequence[LayerError] | None  # None: its layers are not those of the original


def model_folder(path: str | Path) -> Path:
    """`path` as the folder of a model that can be loaded without running anybody's code.

    Raises:
        ConfigError: it is no folder, or has no .safetensors file.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError("model_path", f"got {str(path)!r}; expected the folder of a causal model")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            "model_path", f"got {str(path)!r}, which has no .safetensors file; expected weights"
        )
    return folder.resolve()


def reload(
    quantization: Quantization, folder: Path, precision: Precision, artifact: Path
) -> Reloaded:
    """Load the original, count it, put the stored weights in their place, count and check."""
    model = load_folder(folder, precision, "model_path")
    dtype = model.dtype
    original_bytes = resident_bytes(model.module)
    checkpoint_bytes = sum(
        {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in
         model.module.parameters()}.values()
    )  # fmt: skip
    reference = _twin(model.module)
    begin_s = perf_counter()
    model, kernel = quantization.load(model, artifact)
    seconds = perf_counter() - begin_s
    return Reloaded(
        model=model,
        kernel=kernel,
        dtype=dtype,
        original_bytes=original_bytes,
        original_checkpoint_bytes=checkpoint_bytes,
        quantized_bytes=resident_bytes(model.module),
        load_seconds=seconds,
        layer_errors=_layer_errors(reference, model.module, int(model.module.config.vocab_size)),
    )


def record(
    folder: Path, config: Mapping[str, Any], artifact: Artifact, reloaded: Reloaded
) -> QuantizationResult:
    """What is known of a quantized model before it is benchmarked, under a new id."""
    written_bytes, weight_bytes = disk_bytes(artifact.path)
    return QuantizationResult(
        result_id=str(uuid.uuid4()),
        original_model_path=str(folder),
        quantized_model_path=str(artifact.path if written_bytes else folder),
        config=config,
        original_size_mb=reloaded.original_bytes / MB,
        quantized_size_mb=reloaded.quantized_bytes / MB,
        compression_ratio=reloaded.original_bytes / reloaded.quantized_bytes,
        accuracy_loss=None,
        speedup_factor=None,
        memory_reduction=1 - reloaded.quantized_bytes / reloaded.original_bytes,
        quantization_time_seconds=artifact.make_seconds,
        validation_metrics=storable(
            {
                "original_bytes": reloaded.original_bytes,
                "quantized_bytes": reloaded.quantized_bytes,
                "original_checkpoint_bytes": reloaded.original_checkpoint_bytes,
                "disk_bytes": written_bytes or None,
                "disk_weight_bytes": weight_bytes or None,
                "disk_compression_ratio": (
                    reloaded.original_checkpoint_bytes / weight_bytes if weight_bytes else None
                ),
                "reused": artifact.reused,
                "load_seconds": reloaded.load_seconds,
                **_layer_metrics(reloaded.layer_errors),
            }
        ),
        timestamp=utc_now(),
    )


def _layer_metrics(errors: Sequence[LayerError] | None) -> dict[str, Any]:
    by_layer = None
    if errors is not None:
        by_layer = {
            e.name: {"weight": e.weight_relative_error, "output": e.output_relative_error}
            for e in errors
        }
    return {
        "layer_errors": by_layer,
        "worst_layer_weight_error": _most(e.weight_relative_error for e in errors or ()),
        "worst_layer_output_error": _most(e.output_relative_error for e in errors or ()),
    }


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def verify(result: QuantizationResult, kind: str) -> Path:
    """The folder from which `result`'s weights can be loaded, after checking every hash in it.

    Raises:
        DataError: the artifact is gone or damaged, or the original is another one by now.
        ConfigError: the original's folder is gone.
    """
    original = model_folder(result.original_model_path)
    path = Path(result.quantized_model_path)
    if source_key(original, result.config["precision"]) != result.config["model"]:
        raise DataError(f"{original}: has changed since it was quantized; quantize it anew")
    if path == original:  # the method stores nothing
        return path
    try:
        key = json.loads((path / META_NAME).read_text(encoding="utf-8"))["key"]
        store = ArtifactStore(path.parent.parent, may_make=False)
        return store.get_or_make(kind, key, _nothing).path
    except (OSError, ValueError, KeyError, TypeError, ArtifactMissing) as error:
        raise DataError(f"{path}: is gone or damaged; quantize the model anew ({error})") from error


def _nothing(folder: Path) -> None:
    raise AssertionError(f"{folder}: a store that may not make anything did")


def _twin(module: nn.Module) -> nn.Module:
    """The same network in modules of its own: it stays what it is while layers of `module` are
    replaced. Linear layers, which are most of it and are replaced as a whole, share their storage;
    the others may be overwritten in place and are copied."""
    linear = {
        id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D)
    }
    own = {
        id(p): nn.Parameter(p.data if id(p) in linear else p.data.clone(), requires_grad=False)
        for p in module.parameters()
    }
    return copy.deepcopy(module, {**own, **{id(b): b for b in module.buffers()}})


def _layer_errors(
    reference: nn.Module, quantized: nn.Module, vocab_size: int
) -> list[LayerError] | None:
    """On random token ids; None where layers cannot be compared one by one, because the method
    has moved factors from one to the next (AWQ, say, into the norms before them)."""
    linear = {n for n, m in reference.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    left = dict(quantized.named_parameters())
    for name, parameter in reference.named_parameters():
        if name.rpartition(".")[0] in linear or name not in left:
            continue
        if not torch.allclose(
            parameter.double(), left[name].double(), rtol=_ROUNDED, atol=_ROUNDED
        ):
            return None
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    ids = torch.randint(vocab_size, (1, _CHECK_TOKENS), generator=generator)
    return layer_errors(reference, quantized, [ids])
