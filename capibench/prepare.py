"""What a run needs before its load starts, made once and kept by content.

Corpus, passage vectors, index, exact neighbours, quantized weights and their quality are
artifacts: a study makes each once, in a process of its own, and every later run only loads it.
What making them cost is kept with them and reported as set-up cost by every run that uses them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from capibench.artifacts import Artifact, ArtifactStore, source_hash
from capibench.config import build
from capibench.corpus.corpus import Corpus
from capibench.corpus.stored import read_corpus, write_corpus
from capibench.embedder.embedder import Vectors
from capibench.errors import ConfigError
from capibench.index.index import Ids, TextIndex
from capibench.index.recall import exact_search, recall_at_k, similarities_of
from capibench.index.tuning.objective import RecallSample
from capibench.model.recipe import ModelRecipe
from capibench.progress import making
from capibench.quantization.quantization import artifact_params
from capibench.stack import Choices

if TYPE_CHECKING:
    from capibench.quantization.quality import Figure

QUALITY_TEXTS = 400  # held-out passages on which a model's language is judged
CALIBRATION_TEXTS = 1_000  # offered; a method takes as many as its settings say
FUSION_QUESTIONS = 1_000  # training questions on which the weight of a fusion is chosen
# Tuning sees one half of the held-out questions, the reported recall is that of the other.
HALVES = {"tune": slice(0, None, 2), "verify": slice(1, None, 2)}
ENCODE_CHUNK = 256


@dataclass
class Preparation:
    """Artifacts of one combination. Each property is made at most once, by content."""

    choices: Choices
    config: Mapping[str, Any]
    store: ArtifactStore

    @cached_property
    def corpus_artifact(self) -> Artifact:
        key = {
            "corpus": self.config["corpus"],
            "source": self.choices.corpus.source_key(),
            "code": source_hash("corpus"),
        }
        return self.store.get_or_make(
            "corpus", key, lambda folder: write_corpus(self.choices.corpus.load(), folder)
        )

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.corpus_artifact.path)

    @cached_property
    def vectors_artifact(self) -> Artifact:
        """Vectors of all passages and of the held-out questions."""

        def make(folder: Path) -> float:
            self.choices.embedder.open()
            begin_s = perf_counter()
            with making("embedding the passages", len(self.corpus.passages)) as embedded:
                passages = self._encode([p.text for p in self.corpus.passages], embedded)
            seconds = perf_counter() - begin_s
            np.save(folder / "passages.npy", passages)
            questions = self.corpus.questions_in("heldout")
            np.save(folder / "questions.npy", self._encode([q.text for q in questions]))
            return seconds

        return self.store.get_or_make("vectors", self._retrieval_key, make)

    def _encode(self, texts: list[str], tell: Callable[[int], None] = lambda _: None) -> Vectors:
        chunks = []
        for begin in range(0, len(texts), ENCODE_CHUNK):
            chunks.append(self.choices.embedder.encode(texts[begin : begin + ENCODE_CHUNK]))
            tell(len(chunks[-1]))
        if not chunks:
            return np.zeros((0, self.choices.embedder.dimension), dtype=np.float32)
        return np.concatenate(chunks)

    def _vectors(self, name: str) -> Vectors:
        vectors: Vectors = np.load(self.vectors_artifact.path / f"{name}.npy", allow_pickle=False)
        return vectors

    @cached_property
    def exact_artifact(self) -> Artifact:
        """Exact neighbours of the held-out questions: what recall is measured against."""
        k = self.choices.prompt.top_k
        key = {**self._retrieval_key, "k": k}

        passages, questions = self._vectors("passages"), self._vectors("questions")

        def make(folder: Path) -> None:
            np.save(folder / "ids.npy", exact_search(passages, questions, k))

        return self.store.get_or_make("exact", key, make)

    @property
    def _retrieval_key(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus.content_hash,
            "embedder": self.choices.embedder.fingerprint(),
            "code": source_hash("embedder"),
        }

    @cached_property
    def tuned_artifact(self) -> Artifact:
        """Which index the tuner chose, with the reasons and every point that it measured. Like any
        latency it belongs to the machine that it was measured on."""
        tuning, index = self.choices.index_tuning, self.choices.index
        k = self.choices.prompt.top_k
        key = {
            **self._index_key_of(index),
            "tuning": self.config["index_tuning"],
            "configured": self.config["index"],
            "k": k,
            "num_threads": self.config["time"].get("num_threads", 1),
        }

        def make(folder: Path) -> float:
            from capibench.index.tuner.candidates import Serving
            from capibench.index.tuner.shown import shown
            from capibench.index.tuner.tune import tune

            passages, queries = self._vectors("passages"), self._vectors("questions")
            if len(queries) < 2:
                raise ConfigError(
                    "index_tuning",
                    f"the corpus has {len(queries)} held-out questions; expected at least 2, to "
                    "choose by one half and verify on the other",
                )
            with shown(tuning.tuning_s) as report:
                tuned = tune(
                    tuning,
                    passages,
                    queries[HALVES["tune"]],
                    queries[HALVES["verify"]],
                    min(k, len(passages)),
                    Serving.of(index),
                    index,
                    report,
                )
            (folder / "tuned.json").write_text(json.dumps(tuned.to_json(), indent=1), "utf-8")
            (folder / "points.csv").write_text(tuned.to_csv(), encoding="utf-8")
            return tuned.seconds

        return self.store.get_or_make("tuned_index", key, make)

    @cached_property
    def tuned(self) -> dict[str, Any] | None:
        """The tuner's record; None where the configured index is searched."""
        if not self.choices.index_tuning.replaces_index:
            return None
        return _read_json(self.tuned_artifact.path / "tuned.json")

    @cached_property
    def served(self) -> Choices:
        """The choices with the index that is really searched: the tuner's, where there is one."""
        if self.tuned is None:
            return self.choices
        index = build(self.tuned["node"], "index", self.config["plugins"])
        return replace(self.choices, index=index)

    @property
    def _index_key(self) -> dict[str, Any]:
        return self._index_key_of(self.served.index)

    def _index_key_of(self, index: Any) -> dict[str, Any]:
        return {
            **self._retrieval_key,
            "index": index.build_params(),
            "index_code": source_hash("index"),
        }

    @cached_property
    def index_artifact(self) -> Artifact:
        vectors = self._vectors("passages")  # first, so that its cost is not the index's

        def make(folder: Path) -> float:
            begin_s = perf_counter()
            try:
                self._build_index(vectors, np.arange(len(vectors), dtype=np.int64))
            except ValueError as error:  # a parameter that does not fit these vectors
                raise ConfigError("", f"index.{error}") from error
            seconds = perf_counter() - begin_s
            self.served.index.save(folder / "index")
            return seconds

        return self.store.get_or_make("index", self._index_key, make)

    def _build_index(self, vectors: Vectors, ids: Ids) -> None:
        index = self.served.index
        if isinstance(index, TextIndex):
            index.build_texts(vectors, ids, [p.text for p in self.corpus.passages])
        else:
            index.build(vectors, ids)

    @cached_property
    def recall_artifact(self) -> Artifact:
        """The query effort chosen, and the recall measured with it on held-out questions; of an
        index that fuses two rankings, the weight chosen on training questions."""
        index = self.served.index
        key = {
            **self._index_key,
            "k": self.choices.prompt.top_k,
            "effort": index.effort,
            "tuning": self.config["index_tuning"],
            "fusion": index.fusion_params() if isinstance(index, TextIndex) else None,
        }

        def make(folder: Path) -> None:
            index.load(self.index_artifact.path / "index")
            passages, queries = self._vectors("passages"), self._vectors("questions")
            k = min(self.choices.prompt.top_k, len(passages))
            exact = np.load(self.exact_artifact.path / "ids.npy", allow_pickle=False)[:, :k]

            def measure(effort: int | None, half: str) -> RecallSample:
                if effort is not None:
                    index.set_effort(effort)
                asked, true = queries[HALVES[half]], exact[HALVES[half]]
                found, _ = index.search(asked, k)
                recall = recall_at_k(
                    found,
                    true,
                    similarities_of(passages, asked, found),
                    similarities_of(passages, asked, true),
                )
                return RecallSample(recall, k)

            tuning, choice = self.choices.index_tuning, None
            if tuning.changes_effort:
                choice = tuning.choose(
                    index.effort_ladder(), lambda effort: measure(effort, "tune")
                )
            verified = measure(None if choice is None else choice.effort, "verify")
            mean, low, high = verified.interval()
            document = {
                "effort": index.effort if choice is None else choice.effort,
                "target_met": self._target_met if choice is None else choice.met,
                "recall": {"value": mean, "low": low, "high": high, "n": len(verified.per_query)},
                "fusion": self._fusion(k),
            }
            (folder / "recall.json").write_text(json.dumps(document), encoding="utf-8")

        return self.store.get_or_make("recall", key, make)

    @property
    def _target_met(self) -> bool | None:
        return None if self.tuned is None else bool(self.tuned["met"])

    def _fusion(self, k: int) -> dict[str, Any] | None:
        """The weight of an index that fuses, as given or chosen; None for any other index."""
        index = self.served.index
        if not isinstance(index, TextIndex):
            return None
        if index.weight is not None:
            return {"weight": index.weight, "chosen_on": 0}
        questions = self.corpus.questions_in("train")[:FUSION_QUESTIONS]
        if not questions:
            raise ConfigError(
                "index.dense_weight",
                "got null, and the corpus has no training questions to choose by; expected 0 to 1",
            )
        self.choices.embedder.open()
        texts = [q.text for q in questions]
        position_of = {p.id: position for position, p in enumerate(self.corpus.passages)}
        relevant = [{position_of[id_] for id_ in q.relevant} for q in questions]
        choice = index.choose_weight(self._encode(texts), texts, relevant, k)
        mean, low, high = choice.ndcg.interval()
        return {
            "weight": choice.weight,
            "chosen_on": len(questions),
            "ndcg_at_k": {"value": mean, "low": low, "high": high},
            "ndcg_at_k_by_weight": {str(w): value for w, value in choice.mean_ndcg.items()},
        }

    @cached_property
    def recall(self) -> dict[str, Any]:
        return _read_json(self.recall_artifact.path / "recall.json")

    @cached_property
    def bm25_artifact(self) -> Artifact:
        """How often plain BM25 finds a right passage: says how hard the question set is."""
        k = self.choices.prompt.top_k
        key = {"corpus": self.corpus.content_hash, "k": k}

        def make(folder: Path) -> None:
            from capibench.index.bm25 import hit_rate

            value, n = hit_rate(self.corpus, k)
            document = {"value": value, "n": n}
            (folder / "bm25.json").write_text(json.dumps(document), encoding="utf-8")

        return self.store.get_or_make("bm25", key, make)

    @cached_property
    def bm25(self) -> dict[str, Any]:
        return _read_json(self.bm25_artifact.path / "bm25.json")

    @property
    def _model_key(self) -> dict[str, Any]:
        return {"model": self.choices.model.source_key(), "code": source_hash("model")}

    @property
    def _quantized_key(self) -> dict[str, Any]:
        quantization = self.choices.quantization
        return {
            **self._model_key,
            "quantization": artifact_params(quantization),
            "calibration": [self.corpus.content_hash, CALIBRATION_TEXTS]
            if quantization.calibrated
            else None,
            "quantization_code": source_hash("quantization"),
        }

    @property
    def _served_key(self) -> dict[str, Any]:
        """Of what is computed with the served model: how it is loaded matters too."""
        if not self.quantizes:
            return self._model_key
        return {**self._quantized_key, "served": self.choices.quantization.params()}

    @cached_property
    def quantized_artifact(self) -> Artifact:
        def make(folder: Path) -> float:
            texts = []
            if self.choices.quantization.calibrated:
                texts = [p.text for p in self._passages("train")][:CALIBRATION_TEXTS]
            model = self.choices.model.load()
            begin_s = perf_counter()
            self.choices.quantization.quantize(model, texts, folder)
            return perf_counter() - begin_s

        return self.store.get_or_make("quantized", self._quantized_key, make)

    @cached_property
    def quality_artifact(self) -> Artifact:
        """What the unquantized model, and the quantized one beside it, say on held-out text."""
        key = {
            **self._served_key,
            "corpus": self.corpus.content_hash,
            "texts": QUALITY_TEXTS,
            "quality_code": source_hash("quantization"),
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

        def make(folder: Path) -> None:
            from capibench.quantization.held_out import judge

            texts = [p.text for p in self._passages("heldout")][:QUALITY_TEXTS]
            quantized = None
            if self.quantizes:
                # Loaded twice: quantizing replaces layers in place, and both are needed at once.
                quantized, _ = self.choices.quantization.load(
                    self.choices.model.load(), self.quantized_artifact.path
                )
            judge(self.choices.model.load(), quantized, texts, folder)

        return self.store.get_or_make("quality", key, make)

    def _passages(self, split: str) -> list[Any]:
        """Passages that a question of this split asks for: the model was never trained on the
        held-out ones."""
        wanted = {p for q in self.corpus.questions_in(split) for p in q.relevant}
        return [p for p in self.corpus.passages if p.id in wanted]

    @cached_property
    def text_quality(self) -> dict[str, Figure]:
        """Perplexity and cloze accuracy of the served model, and against the unquantized one on
        the same tokens and items."""
        from capibench.quantization.held_out import figures

        return figures(self.quality_artifact.path)

    @property
    def _rounds_kv_cache(self) -> bool:
        return bool(getattr(self.choices.engine, "kv_cache", "native") == "int8")

    @cached_property
    def kv_cache_quality(self) -> dict[str, Figure]:
        """The served model over an int8 key-value cache against the same over an exact one; no
        figures where the engine's cache is exact."""
        if not self._rounds_kv_cache:
            return {}
        from capibench.engine.kv_quality import judge_kv_cache, kv_cache_figures

        key = {
            **self._served_key,
            "corpus": self.corpus.content_hash,
            "texts": QUALITY_TEXTS,
            "kv_cache_code": [source_hash("engine"), source_hash("quantization")],
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

        def make(folder: Path) -> None:
            texts = [p.text for p in self._passages("heldout")][:QUALITY_TEXTS]
            model = self.choices.model.load()
            if self.quantizes:
                model, _ = self.choices.quantization.load(model, self.quantized_artifact.path)
            judge_kv_cache(model, texts, folder)

        return kv_cache_figures(self.store.get_or_make("kv_cache_quality", key, make).path)

    @property
    def recipe(self) -> ModelRecipe:
        """How a process loads the model that this combination serves."""
        quantized = self.quantized_artifact.path if self.quantizes else None
        return ModelRecipe(self.choices.model, self.choices.quantization, quantized)

    @property
    def quantizes(self) -> bool:
        return bool(self.choices.quantization.params()["method"] != "none")

    @property
    def searches(self) -> bool:
        """False when the index is modeled: then there are no vectors, no index, no recall."""
        return not self.choices.index.modeled

    def make_all(self) -> None:
        """Make whatever is missing, in the order in which it is needed."""
        _ = self.corpus
        if self.searches:
            _ = self.bm25, self.index_artifact, self.recall
        if self.choices.engine.needs_model:
            if self.quantizes:
                _ = self.quantized_artifact
            if self.choices.model.meaningful:
                _ = self.text_quality, self.kv_cache_quality


def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
