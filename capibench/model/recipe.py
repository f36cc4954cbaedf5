"""How the served model is loaded, said once, for whichever process has to hold it.

Most engines share the run's process, which loads the model for them. An engine with processes of
its own is given the recipe instead: weights never travel between processes, each reads the same
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from capibench.config import build, node_of
from capibench.model.language_model import LanguageModel, ModelSource

if TYPE_CHECKING:
    from capibench.quantization.quantization import Quantization


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a run records about the model that it serves."""

    fingerprint: str
    dtype: str
    kernel: str  # that multiplies the quantized weights; "none" where none are
    baseline_bytes: int  # parameters and buffers in memory before quantized ones took their place
    num_bytes: int  # and as they are served
    load_s: float
    quantized_load_s: float | None  # None: not quantized


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model in memory, ready to serve, and what is to be recorded about it."""

    model: LanguageModel
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A source of weights and, unless `quantized` is None, the folder of those that replace
    them."""

    source: ModelSource
    quantization: Quantization
    quantized: Path | None

    def to_nodes(self) -> dict[str, Any]:
        """JSON from which `from_nodes` makes an equal recipe in another process."""
        return {
            "source": node_of(self.source),
            "quantization": node_of(self.quantization),
            "quantized": None if self.quantized is None else str(self.quantized.resolve()),
        }

    @staticmethod
    def from_nodes(nodes: Mapping[str, Any], plugins: Sequence[str]) -> ModelRecipe:
        """What `to_nodes` was called on; `plugins` as for `capibench.config.build`."""
        quantized = nodes["quantized"]
        return ModelRecipe(
            source=build(nodes["source"], "model", plugins),
            quantization=build(nodes["quantization"], "quantization", plugins),
            quantized=None if quantized is None else Path(quantized),
        )

    def load(self) -> ServedModel:
        """Load in this process; the bytes are counted before and after quantized weights."""
        # Here, because a recipe is also handed on by processes that need not import torch.
        from capibench.quantization.bytes import resident_bytes

        begin_s = perf_counter()
        model = self.source.load()
        load_s = perf_counter() - begin_s
        baseline_bytes = resident_bytes(model.module)
        kernel, quantized_load_s = "none", None
        if self.quantized is not None:
            begin_s = perf_counter()
            fingerprint = f"{model.fingerprint}:{self.quantized.name}"
            model, kernel = self.quantization.load(model, self.quantized)
            model = replace(model, fingerprint=fingerprint)
            quantized_load_s = perf_counter() - begin_s
        return ServedModel(
            model,
            ModelFacts(
                fingerprint=model.fingerprint,
                dtype=model.dtype,
                kernel=kernel,
                baseline_bytes=baseline_bytes,
                num_bytes=resident_bytes(model.module),
                load_s=load_s,
                quantized_load_s=quantized_load_s,
            ),
        )
