"""A corpus on disk, so that a study harvests once and every run reads the same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from capibench.corpus.corpus import Corpus, Passage, Question


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write passages, questions and the manifest as JSON lines."""
    for name, rows in (("passages", corpus.passages), ("questions", corpus.questions)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    head = {
        "name": corpus.name,
        "content_hash": corpus.content_hash,
        "manifest": dict(corpus.manifest),
    }
    (folder / "corpus.json").write_text(json.dumps(head, indent=1), encoding="utf-8")


def read_corpus(folder: Path) -> Corpus:
    """Read what `write_corpus` wrote."""
    head = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    with (folder / "passages.jsonl").open(encoding="utf-8") as file:
        passages = tuple(Passage(**json.loads(line)) for line in file)
    with (folder / "questions.jsonl").open(encoding="utf-8") as file:
        questions = tuple(
            Question(
                **{**row, "relevant": tuple(row["relevant"]), "answers": tuple(row["answers"])}
            )
            for row in map(json.loads, file)
        )
    return Corpus(
        name=head["name"],
        passages=passages,
        questions=questions,
        content_hash=head["content_hash"],
        manifest=head["manifest"],
    )
