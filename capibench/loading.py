"""From artifacts to a stack in memory, with the time and the bytes of each part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from capibench.prepare import Preparation
from capibench.stack import Choices


@dataclass
class Loaded:
    """What the measured part of a run works with."""

    model: Any
    facts: dict[str, float | None]
    components: dict[str, dict[str, Any]]
    identity: dict[str, str]


def load_stack(choices: Choices, preparation: Preparation) -> Loaded:
    """Load everything that the load will touch, and time each part: set-up is a cost."""
    facts: dict[str, float | None] = {
        "setup.corpus_s": preparation.corpus_artifact.make_seconds,
    }
    components: dict[str, dict[str, Any]] = {
        "corpus": {"name": preparation.corpus.name, **preparation.corpus.manifest}
    }
    identity = {"prompt": repr(choices.prompt)}

    begin_s = perf_counter()
    choices.embedder.open()
    facts["setup.embedder_load_s"] = perf_counter() - begin_s
    identity["embedder"] = choices.embedder.fingerprint()
    identity["index"] = "modeled"
    if preparation.searches:
        facts["quality.bm25_hit_at_k"] = preparation.bm25["value"]
        facts["setup.embed_corpus_s"] = preparation.vectors_artifact.make_seconds
        facts["setup.index_build_s"] = preparation.index_artifact.make_seconds
        begin_s = perf_counter()
        choices.index.load(preparation.index_artifact.path / "index.bin")
        facts["setup.index_load_s"] = perf_counter() - begin_s
        facts["index.bytes"] = choices.index.size_bytes()
        recall = preparation.recall
        facts["setup.index_tuning_s"] = preparation.recall_artifact.make_seconds
        if recall["effort"] is not None:
            choices.index.set_effort(recall["effort"])
        for bound in ("value", "low", "high"):
            name = "quality.recall_at_k" + ("" if bound == "value" else f".{bound}")
            facts[name] = recall["recall"][bound]
        identity["index"] = f"{preparation.index_artifact.path.name}:{recall['effort']}"
        facts["index.effort"] = recall["effort"]
    else:
        ids = np.arange(len(preparation.corpus.passages), dtype=np.int64)
        choices.index.build(np.zeros((len(ids), 1), dtype=np.float32), ids)

    model = None
    identity["model"] = "none"
    if choices.engine.needs_model:
        begin_s = perf_counter()
        model = choices.model.load()
        facts["setup.model_load_s"] = perf_counter() - begin_s
        model = _quantized(choices, preparation, model, facts, components)
        identity["model"] = model.fingerprint
        if choices.model.meaningful:
            qualities = {**preparation.text_quality, **preparation.kv_cache_quality}
            for name, value in qualities.items():
                for bound in ("value", "low", "high"):
                    suffix = "" if bound == "value" else f".{bound}"
                    facts[f"quality.{name}{suffix}"] = value[bound]
    identity["corpus"] = preparation.corpus.content_hash
    return Loaded(model, facts, components, identity)


def _quantized(
    choices: Choices,
    preparation: Preparation,
    model: Any,
    facts: dict[str, Any],
    components: dict[str, Any],
) -> Any:
    """The model to serve; its bytes are counted before and after."""
    from capibench.quantization.bytes import file_bytes, resident_bytes

    before = resident_bytes(model.module)
    kernel = "none"
    if preparation.quantizes:
        artifact = preparation.quantized_artifact
        facts["setup.quantize_s"] = artifact.make_seconds
        facts["model.disk_bytes"] = file_bytes(artifact.path)
        begin_s = perf_counter()
        fingerprint = f"{model.fingerprint}:{artifact.path.name}"
        model, kernel = choices.quantization.load(model, artifact.path)
        model = replace(model, fingerprint=fingerprint)
        facts["setup.quantized_load_s"] = perf_counter() - begin_s
    facts["model.baseline_bytes"] = before
    facts["model.bytes"] = resident_bytes(model.module)
    components["quantization"] = {**choices.quantization.params(), "kernel": kernel}
    components["model"] = {"dtype": model.dtype, "fingerprint": model.fingerprint}
    return model
