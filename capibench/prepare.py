"""What a run needs before its load starts, made once and kept by content.

Corpus, passage vectors, index, exact neighbours, quantized weights and their quality are
artifacts: a study makes each once, in a process of its own, and every later run only loads it.
What making them cost is kept with them and reported as set-up cost by every run that uses them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from capibench.artifacts import Artifact, ArtifactStore
from capibench.corpus.corpus import Corpus
from capibench.corpus.stored import read_corpus, write_corpus
from capibench.embedder.embedder import Vectors
from capibench.index.recall import exact_search, recall_at_k
from capibench.index.tuning.objective import RecallSample
from capibench.stack import Choices

if TYPE_CHECKING:
    from capibench.quantization.quality import TextQuality

# Held-out text on which language quality is computed: enough tokens for an interval of about one
# per cent, few enough that a quantized model is judged in seconds.
QUALITY_TEXTS = 400
QUALITY_TOKENS = 20_000
CALIBRATION_TEXTS = 128
ENCODE_CHUNK = 256


@dataclass
class Preparation:
    """Artifacts of one combination. Each property is made at most once, by content."""

    choices: Choices
    config: Mapping[str, Any]
    store: ArtifactStore

    @cached_property
    def corpus_artifact(self) -> Artifact:
        key = {"corpus": self.config["corpus"], "source": self.choices.corpus.source_key()}
        return self.store.get_or_make(
            "corpus", key, lambda folder: write_corpus(self.choices.corpus.load(), folder)
        )

    @cached_property
    def corpus(self) -> Corpus:
        return read_corpus(self.corpus_artifact.path)

    @cached_property
    def vectors_artifact(self) -> Artifact:
        """Vectors of all passages and of the held-out questions."""
        key = {"corpus": self.corpus.content_hash, "embedder": self.choices.embedder.fingerprint()}

        def make(folder: Path) -> None:
            self.choices.embedder.open()
            questions = self.corpus.questions_in("heldout")
            np.save(folder / "passages.npy", self._encode([p.text for p in self.corpus.passages]))
            np.save(folder / "questions.npy", self._encode([q.text for q in questions]))

        return self.store.get_or_make("vectors", key, make)

    def _encode(self, texts: list[str]) -> Vectors:
        encode = self.choices.embedder.encode
        chunks = [
            encode(texts[begin : begin + ENCODE_CHUNK])
            for begin in range(0, len(texts), ENCODE_CHUNK)
        ]
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
        }

    @property
    def _index_key(self) -> dict[str, Any]:
        return {**self._retrieval_key, "index": self.choices.index.build_params()}

    @cached_property
    def index_artifact(self) -> Artifact:
        vectors = self._vectors("passages")  # first, so that its cost is not the index's

        def make(folder: Path) -> None:
            self.choices.index.build(vectors, np.arange(len(vectors), dtype=np.int64))
            self.choices.index.save(folder / "index.bin")

        return self.store.get_or_make("index", self._index_key, make)

    @cached_property
    def recall_artifact(self) -> Artifact:
        """The query effort chosen, and the recall measured with it on held-out questions."""
        k = self.choices.prompt.top_k
        key = {
            **self._index_key,
            "k": k,
            "effort": self.choices.index.effort,
            "tuning": self.config["index_tuning"],
        }

        def make(folder: Path) -> None:
            index = self.choices.index
            index.load(self.index_artifact.path / "index.bin")
            queries = self._vectors("questions")
            exact = np.load(self.exact_artifact.path / "ids.npy", allow_pickle=False)
            # Tuning sees one half of the held-out questions, the reported recall the other.
            halves = {"tune": slice(0, None, 2), "verify": slice(1, None, 2)}

            def measure(effort: int | None, half: str) -> RecallSample:
                if effort is not None:
                    index.set_effort(effort)
                found, _ = index.search(queries[halves[half]], k)
                return RecallSample(recall_at_k(found, exact[halves[half]]), k)

            ladder = index.effort_ladder()
            choice = self.choices.index_tuning.choose(
                ladder, lambda effort: measure(effort, "tune")
            )
            verified = measure(None if choice is None else choice.effort, "verify")
            mean, low, high = verified.interval()
            document = {
                "effort": index.effort if choice is None else choice.effort,
                "target_met": None if choice is None else choice.met,
                "recall": {"value": mean, "low": low, "high": high, "n": len(verified.per_query)},
            }
            (folder / "recall.json").write_text(json.dumps(document), encoding="utf-8")

        return self.store.get_or_make("recall", key, make)

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
        return {"model": self.choices.model.source_key()}

    @property
    def _quantized_key(self) -> dict[str, Any]:
        return {
            **self._model_key,
            "quantization": self.choices.quantization.params(),
            "calibration": self.corpus.content_hash,
        }

    @cached_property
    def quantized_artifact(self) -> Artifact:
        def make(folder: Path) -> None:
            texts = [p.text for p in self._passages("train")][:CALIBRATION_TEXTS]
            self.choices.quantization.quantize(self.choices.model.load(), texts, folder)

        return self.store.get_or_make("quantized", self._quantized_key, make)

    def _quality(self, key: dict[str, Any], quantized: bool) -> TextQuality:
        from capibench.quantization.quality import TextQuality, evaluate

        texts = [p.text for p in self._passages("heldout")][:QUALITY_TEXTS]
        key = {**key, "corpus": self.corpus.content_hash, "tokens": QUALITY_TOKENS}

        def make(folder: Path) -> None:
            model = self.choices.model.load()
            if quantized:
                model, _ = self.choices.quantization.load(model, self.quantized_artifact.path)
            evaluate(model, texts, max_tokens=QUALITY_TOKENS, window=256).save(folder)

        return TextQuality.load(self.store.get_or_make("quality", key, make).path)

    def _passages(self, split: str) -> list[Any]:
        """Passages that a question of this split asks for: the model was never trained on the
        held-out ones."""
        wanted = {p for q in self.corpus.questions_in(split) for p in q.relevant}
        return [p for p in self.corpus.passages if p.id in wanted]

    @cached_property
    def text_quality(self) -> dict[str, dict[str, float | int | None]]:
        """Perplexity of the served model, and against the unquantized one on the same tokens."""
        from capibench.quantization.quality import compare

        baseline = self._quality(self._model_key, quantized=False)
        if not self.quantizes:
            return compare(baseline, baseline)
        return compare(baseline, self._quality(self._quantized_key, quantized=True))

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
                _ = self.text_quality


def _read_json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
