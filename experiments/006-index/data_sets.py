"""The vectors of the study: real embeddings of documentation, and two made kinds to compare with.

Questions are the summaries that were taken out of the documents, so that no query is a database
vector. Embedding is an artifact in the CapiBench home: paid for once. How many objects are
documented depends on what is installed.

    python experiments/006-index/data_sets.py docs-50000 --out FOLDER

writes them as .npy, for other programs, and for these scripts: FOLDER is then a data set, which
stays the same when other packages are installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console

from capibench.artifacts import ArtifactStore, home, source_hash
from capibench.config import build, conf_dir
from capibench.corpus.corpus import Corpus
from capibench.corpus.stored import read_corpus, write_corpus
from capibench.embedder.embedder import Vectors

NUM_QUERIES = 2_000  # of each data set: a quarter each to tune, to verify, half fresh
NUM_EMBEDDED = 50_000  # documents, at most: about an hour on one core without bf16
PARTS = ("vectors", "tune", "verify", "fresh")
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
    """Each of `names`, made when its turn comes: docs-N, gaussian-N, clustered-N, or a folder."""
    for name in names:
        kind, _, size = name.partition("-")
        if Path(name).is_dir():
            yield _written(Path(name))
        elif kind == "docs":
            yield _docs(name, int(size), seed, console)
        elif kind in ("gaussian", "clustered"):
            yield _made(name, kind, int(size), seed)
        else:
            raise SystemExit(
                f"--data: got {name}; expected docs-N, gaussian-N, clustered-N or a folder"
            )


def _docs(name: str, size: int, seed: int, console: Console) -> DataSet:
    """The first `size` of one random order of the documented objects; the first `NUM_EMBEDDED` are
    embedded together."""
    store = ArtifactStore(home() / "artifacts")
    corpus = _corpus(store)
    available = min(len(corpus.passages), NUM_EMBEDDED)
    if size > available:
        raise SystemExit(
            f"{name}: the installed packages document {len(corpus.passages)} objects, of which "
            f"at most {NUM_EMBEDDED} are embedded; install more, or ask for fewer"
        )
    embedder = build(_choice("embedder", "minilm"), "embedder")
    generator = np.random.default_rng(seed)
    passages = generator.permutation(len(corpus.passages))[:available]
    questions = generator.permutation(len(corpus.questions))[:NUM_QUERIES]
    key = {
        "corpus": corpus.content_hash,
        "embedder": embedder.fingerprint(),
        "size": available,
        "num_queries": NUM_QUERIES,
        "seed": seed,
        "code": source_hash("embedder"),
    }

    def make(folder: Path) -> None:
        embedder.open()
        texts = [corpus.passages[i].text for i in passages]
        asked = [corpus.questions[i].text for i in questions]
        np.save(folder / "vectors.npy", _embedded(embedder, texts, console))
        np.save(folder / "queries.npy", _embedded(embedder, asked, console))

    artifact = store.get_or_make("study_vectors", key, make)
    vectors: Vectors = np.load(artifact.path / "vectors.npy")[:size]
    queries: Vectors = np.load(artifact.path / "queries.npy")
    facts = {
        "corpus": corpus.content_hash,
        "embedded": available,
        "embed_s": artifact.make_seconds,
        "packages": corpus.manifest["packages"],
    }
    return _split(name, True, vectors, queries, facts)


def _corpus(store: ArtifactStore) -> Corpus:
    """Harvested once, since that takes a minute."""
    node = _choice("corpus", "pydocs_installed")
    source = build(node, "corpus")
    key = {"corpus": node, "source": source.source_key(), "code": source_hash("corpus")}
    artifact = store.get_or_make("corpus", key, lambda folder: write_corpus(source.load(), folder))
    return read_corpus(artifact.path)


def _written(folder: Path) -> DataSet:
    """What `main` wrote."""
    head = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    return DataSet(**head, **{part: np.load(folder / f"{part}.npy") for part in PARTS})


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for data in data_sets([chosen.name], chosen.seed, Console(stderr=True)):
        for part in PARTS:
            np.save(chosen.out / f"{part}.npy", getattr(data, part))
        head = {"name": data.name, "real": data.real, "facts": data.facts}
        (chosen.out / "data.json").write_text(json.dumps(head, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
