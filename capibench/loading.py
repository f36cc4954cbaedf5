"""From artifacts to a stack in memory, with the time and the bytes of each part."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from capibench.engine.engine import LoadsModel
from capibench.index.index import TextIndex
from capibench.model.language_model import LanguageModel
from capibench.model.recipe import ModelFacts
from capibench.prepare import Preparation
from capibench.quantization.bytes import file_bytes
from capibench.stack import Choices


@dataclass
class Loaded:
    """What the measured part of a run works with."""

    model: LanguageModel | None  # None: the engine needs none, or loads it in its own processes
    facts: dict[str, float | None]
    components: dict[str, dict[str, Any]]
    identity: dict[str, str]

    def serves(self, model: ModelFacts) -> None:
        """Record the model, once it is known to be in memory, here or in the engine's processes."""
        self.identity["model"] = model.fingerprint
        self.facts["setup.model_load_s"] = model.load_s
        if model.quantized_load_s is not None:
            self.facts["setup.quantized_load_s"] = model.quantized_load_s
        self.facts["model.baseline_bytes"] = model.baseline_bytes
        self.facts["model.bytes"] = model.num_bytes
        self.components["quantization"]["kernel"] = model.kernel
        self.components["model"] = {"dtype": model.dtype, "fingerprint": model.fingerprint}


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
        choices.index.load(preparation.index_artifact.path / "index")
        facts["setup.index_load_s"] = perf_counter() - begin_s
        facts["index.bytes"] = choices.index.size_bytes()
        recall = preparation.recall
        tuning_s = preparation.recall_artifact.make_seconds
        if preparation.tuned is not None:
            tuning_s += preparation.tuned_artifact.make_seconds
            components["index_tuning"] = {
                name: preparation.tuned[name]
                for name in ("chosen", "met", "reasons", "ties", "features", "conditions")
            }
        facts["setup.index_tuning_s"] = tuning_s
        if recall["effort"] is not None:
            choices.index.set_effort(recall["effort"])
        for bound in ("value", "low", "high"):
            name = "quality.recall_at_k" + ("" if bound == "value" else f".{bound}")
            facts[name] = recall["recall"][bound]
        identity["index"] = f"{preparation.index_artifact.path.name}:{recall['effort']}"
        if isinstance(choices.index, TextIndex):
            choices.index.set_weight(recall["fusion"]["weight"])
            components["fusion"] = recall["fusion"]
            identity["index"] += f":{choices.index.fusion_params()}:{choices.index.weight}"
        facts["index.effort"] = recall["effort"]
    else:
        ids = np.arange(len(preparation.corpus.passages), dtype=np.int64)
        choices.index.build(np.zeros((len(ids), 1), dtype=np.float32), ids)

    identity["model"] = "none"
    identity["corpus"] = preparation.corpus.content_hash
    loaded = Loaded(None, facts, components, identity)
    if choices.engine.needs_model:
        components["quantization"] = dict(choices.quantization.params())
        if preparation.quantizes:
            artifact = preparation.quantized_artifact
            facts["setup.quantize_s"] = artifact.make_seconds
            facts["model.disk_bytes"] = file_bytes(artifact.path)
        if isinstance(choices.engine, LoadsModel):
            choices.engine.will_load(preparation.recipe)
        else:
            served = preparation.recipe.load()
            loaded.model = served.model
            loaded.serves(served.facts)
        if choices.model.meaningful:
            qualities = {**preparation.text_quality, **preparation.kv_cache_quality}
            for name, value in qualities.items():
                for bound in ("value", "low", "high"):
                    suffix = "" if bound == "value" else f".{bound}"
                    facts[f"quality.{name}{suffix}"] = value[bound]
    return loaded
