"""The vectors of the study: real embeddings of documentation, and two made kinds to compare with.

Questions are the summaries that were taken out of the documents, so that no query is a database
vector. Embedding is an artifact in the CapiBench home: paid for once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console

from capibench.artifacts import ArtifactStore, home, source_hash
from capibench.config import build, conf_dir
from capibench.embedder.embedder import Vectors

NUM_QUERIES = 2_000  # of each data set: a quarter each to tune, to verify, half fresh
_CHUNK = 256
_MADE_DIMENSION = 384


@dataclass(frozen=True, eq=False)
class DataSet:
    """Vectors and the three splits of their queries."""

    name: str
    real: bool
    vectors: Vectors  # [n, d]
    tune: Vectors
    verify: Vectors
    fresh: Vectors  # seen by nothing but the final figures
    facts: dict[str, Any]


def data_sets(names: Sequence[str], seed: int, console: Console) -> Iterator[DataSet]:
    """Each of `names`, made when its turn comes: docs-N, gaussian-N, clustered-N."""
    for name in names:
        kind, _, size = name.partition("-")
        if kind == "docs":
            yield _docs(name, int(size), seed, console)
        elif kind in ("gaussian", "clustered"):
            yield _made(name, kind, int(size), seed)
        else:
            raise SystemExit(f"--data: got {name}; expected docs-N, gaussian-N or clustered-N")


def _docs(name: str, size: int, seed: int, console: Console) -> DataSet:
    corpus_node, embedder_node = (
        _choice("corpus", "pydocs_installed"),
        _choice("embedder", "minilm"),
    )
    corpus = build(corpus_node, "corpus").load()
    embedder = build(embedder_node, "embedder")
    if len(corpus.passages) < size:
        raise SystemExit(f"{name}: the installed packages document {len(corpus.passages)} objects")
    generator = np.random.default_rng(seed)
    passages = generator.permutation(len(corpus.passages))[:size]
    questions = generator.permutation(len(corpus.questions))[:NUM_QUERIES]
    embedder.open()
    key = {
        "corpus": corpus.content_hash,
        "embedder": embedder.fingerprint(),
        "size": size,
        "num_queries": NUM_QUERIES,
        "seed": seed,
        "code": source_hash("embedder"),
    }

    def make(folder: Any) -> None:
        texts = [corpus.passages[i].text for i in passages]
        asked = [corpus.questions[i].text for i in questions]
        np.save(folder / "vectors.npy", _embedded(embedder, texts, console))
        np.save(folder / "queries.npy", _embedded(embedder, asked, console))

    artifact = ArtifactStore(home() / "artifacts").get_or_make("study_vectors", key, make)
    vectors: Vectors = np.load(artifact.path / "vectors.npy")
    queries: Vectors = np.load(artifact.path / "queries.npy")
    facts = {"corpus": corpus.content_hash, "embed_s": artifact.make_seconds}
    return _split(name, True, vectors, queries, facts)


def _made(name: str, kind: str, size: int, seed: int) -> DataSet:
    """`gaussian`: nothing to find, the worst case. `clustered`: 1,000 round clusters, which
    flatters inverted lists by an order of magnitude."""
    generator = np.random.default_rng(seed)
    d = _MADE_DIMENSION
    made = generator.standard_normal((size + NUM_QUERIES, d), dtype=np.float32)
    if kind == "clustered":
        centres = generator.standard_normal((1_000, d), dtype=np.float32)
        made = centres[generator.integers(0, 1_000, len(made))] + 0.5 * made
    return _split(name, False, made[:size], made[size:], {"seed": seed})


def _split(
    name: str, real: bool, vectors: Vectors, queries: Vectors, facts: dict[str, Any]
) -> DataSet:
    quarter = len(queries) // 4
    return DataSet(
        name, real, vectors, queries[:quarter], queries[quarter : 2 * quarter],
        queries[2 * quarter :], facts,
    )  # fmt: skip


def _embedded(embedder: Any, texts: list[str], console: Console) -> Vectors:
    chunks = []
    for begin in range(0, len(texts), _CHUNK):
        chunks.append(embedder.encode(texts[begin : begin + _CHUNK]))
        console.print(f"embedded {min(begin + _CHUNK, len(texts))} of {len(texts)}", end="\r")
    return np.concatenate(chunks)


def _choice(group: str, name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(loaded, dict)
    return loaded
