"""One named index in its folder: structure, vectors, ids, documents, metadata and where they came
from, swapped as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from capibench.config import build
from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.metadata import Condition, Metadata, Value, checked_values
from capibench.index.saved import MANIFEST_NAME, Saved, load_directory, save_directory
from capibench.index.stored_index import StoredIndex
from capibench.measure.stats import Estimate

KIND = "optimized index"
_TEXT = "text"  # the one field of the documents


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of an index beside its content; JSON."""

    name: str
    version: int
    strategy: str
    family: str  # the choice of conf/index
    tuning: Mapping[str, Any]  # the configuration it was tuned with
    tuned: Mapping[str, Any] | None  # the tuner's record, without its points; None: never tuned
    k: int  # results per query that it was tuned for
    recall: Estimate | None  # last measured
    recall_k: int | None
    num_checked: int  # vectors when it was measured
    num_changed: int  # added and removed since then
    created_at: str
    updated_at: str

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Provenance:
        """What `asdict` gave."""
        recall = document["recall"]
        return cls(**{**document, "recall": None if recall is None else Estimate(**recall)})


@dataclass
class Kept:
    """An index with what belongs to it, in memory as it is on the disk."""

    index: StoredIndex
    provenance: Provenance
    queries: Vectors | None  # real ones, that the user gave with the vectors
    documents: Metadata | None
    metadata: Metadata | None
    points: list[dict[str, Any]]  # all that the tuner measured
    disk_bytes: int  # of the files, as last saved or loaded
    stamp: tuple[int, ...]  # of the manifest then

    def save(self, folder: Path) -> None:
        """Replace what the folder holds, in one step, under the next version."""
        provenance = replace(self.provenance, version=self.provenance.version + 1)
        facts = {"index": self.index.saved_facts(), "provenance": asdict(provenance)}
        save_directory(folder, KIND, facts, self._writers())
        self.provenance = provenance
        self.stamp = stamp_of(folder)
        self.disk_bytes = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())

    @classmethod
    def load(cls, folder: Path) -> Kept:
        """Raises: DataError for whatever is not a whole and undamaged index of this kind."""
        stamp = stamp_of(folder)
        saved = load_directory(folder, KIND)
        facts = saved.facts["index"]
        index = build(facts["component"], "index")
        index.load_saved(Saved(facts, saved.files, saved.num_bytes), folder)
        files = saved.files
        try:
            return cls(
                index,
                Provenance.from_json(saved.facts["provenance"]),
                np.load(files["queries"], allow_pickle=False) if "queries" in files else None,
                Metadata.read(files["documents"]) if "documents" in files else None,
                Metadata.read(files["metadata"]) if "metadata" in files else None,
                json.loads(files["points"].read_text(encoding="utf-8")),
                saved.num_bytes + (folder / MANIFEST_NAME).stat().st_size,
                stamp,
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder}: written by another version: {error}") from error

    def add(
        self,
        vectors: Vectors,
        ids: Ids,
        documents: Sequence[str] | None,
        metadata: Mapping[str, Sequence[Value]] | None,
    ) -> None:
        """Raises: ValueError for what does not fit, when some of it may have been added: the
        caller forgets this object then."""
        for name, given, present in (
            ("documents", documents, self.documents),
            ("metadata", metadata, self.metadata),
        ):
            if (given is None) != (present is None):
                raise ValueError(
                    f"{name}: got {'none' if given is None else 'some'}; expected "
                    f"{'some' if given is None else 'none'}, as the index has been built"
                )
        texts = None if documents is None else checked_documents(documents, len(ids))
        self.index.add(vectors, ids)
        if texts is not None and self.documents is not None:
            self.documents.add(ids, {_TEXT: texts})
        if metadata is not None and self.metadata is not None:
            self.metadata.add(ids, metadata)
        self._changed(len(ids))

    def remove(self, ids: Ids) -> None:
        """Raises: ValueError as `add`."""
        self.index.remove(ids)
        for facts in (self.documents, self.metadata):
            if facts is not None:
                facts.remove(ids)
        self._changed(len(ids))

    def allowed(self, conditions: Mapping[str, Condition]) -> Allowed:
        """Raises: ValueError where there is no metadata, or not such a field."""
        if self.metadata is None:
            raise ValueError(
                f"filter: got {dict(conditions)}; expected ids, since {self.provenance.name!r} was "
                "built without metadata"
            )
        return self.metadata.select(conditions)

    def texts(self, ids: Sequence[int]) -> list[str] | None:
        """The documents of `ids`; None where none were given."""
        if self.documents is None:
            return None
        places = {int(id_): place for place, id_ in enumerate(self.documents.ids)}
        texts = self.documents.fields[_TEXT]
        return [str(texts[places[id_]]) for id_ in ids]

    def note(self, **changes: Any) -> None:
        """Replace parts of the provenance."""
        self.provenance = replace(self.provenance, **changes)

    def _changed(self, count: int) -> None:
        self.note(num_changed=self.provenance.num_changed + count)

    def _writers(self) -> dict[str, Callable[[Path], None]]:
        writers = dict(self.index.saved_files())
        queries, points = self.queries, self.points
        if queries is not None:
            writers["queries"] = lambda path: _write_array(path, queries)
        if self.documents is not None:
            writers["documents"] = self.documents.write
        if self.metadata is not None:
            writers["metadata"] = self.metadata.write
        writers["points"] = lambda path: _write_json(path, points)
        return writers


def documents_of(ids: Ids, texts: Sequence[str] | None) -> Metadata | None:
    """Texts by id, as they are kept; ValueError as `checked_documents`."""
    return None if texts is None else Metadata(ids, {_TEXT: checked_documents(texts, len(ids))})


def checked_documents(documents: Sequence[str], num_ids: int) -> Sequence[Value]:
    """ValueError unless they are one text for each id."""
    texts = checked_values("documents", documents, num_ids)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"documents[{i}]: got {text!r}; expected text")
    return texts


def stamp_of(folder: Path) -> tuple[int, ...]:
    """Changes whenever the folder is saved to; empty where nothing was."""
    try:
        status = (folder / MANIFEST_NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write_array(path: Path, array: Vectors) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
