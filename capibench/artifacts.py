"""Whatever is costly to make (embeddings, indexes, quantized weights) is made once per content.

An artifact is a folder whose name is the hash of everything that determines it. A study of many
runs so pays for each embedding or index once, and its cost stays on record beside it. Made in a
hidden sibling and renamed in one step, a folder at its final place is always complete; the hashes
in `meta.json` tell whether it still is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from capibench.errors import CapiBenchError

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

META_NAME = "meta.json"
_log = logging.getLogger(__name__)


def home() -> Path:
    """Where everything CapiBench writes is kept: $CAPIBENCH_HOME, or `outputs` here."""
    return Path(os.environ.get("CAPIBENCH_HOME", "outputs")).resolve()


@cache
def source_hash(room: str) -> str:
    """Hash of a room's source: what it made is made again after its code has changed."""
    digest = hashlib.blake2b(digest_size=8)
    sources = (Path(__file__).parent / room).rglob("*.*")
    for path in sorted(source for source in sources if source.suffix in (".py", ".cpp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class ArtifactMissing(CapiBenchError):
    """Somebody who may not make artifacts needs one that is not there."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete folder, and what it cost."""

    path: Path
    reused: bool  # found ready-made (also when another process was quicker to make it)
    make_seconds: float  # of the call that made it, whenever that was
    size_bytes: int  # of its files, meta.json not counted


@dataclass(frozen=True)
class ArtifactStore:
    """Content-addressed folders `root/kind/<hash of the key>`; safe for processes side by side.

    A process killed in the middle leaves a `.making-*` folder, which nobody ever reads and
    anybody may delete.
    """

    root: Path
    may_make: bool = True  # False: what is missing is an error, because making it would disturb

    def path_of(self, kind: str, key: Mapping[str, Json]) -> Path:
        """Where the artifact of `key` lies or would lie.

        Raises:
            ValueError: `kind` is not a plain name, or `key` holds NaN or infinity.
            TypeError: `key` is not JSON.
        """
        if not kind.replace("_", "").isalnum():
            raise ValueError(f"kind: got {kind!r}; expected letters, digits and underscores")
        digest = hashlib.blake2b(_canonical(key).encode(), digest_size=16).hexdigest()
        return self.root / kind / digest

    def get_or_make(
        self, kind: str, key: Mapping[str, Json], make: Callable[[Path], float | None]
    ) -> Artifact:
        """The artifact of `key`: as found, or made by `make(folder)` in an empty folder.

        Args:
            kind: name of the family ("embeddings", "index"); the folder under the root.
            key: everything that determines the content (inputs' hashes, parameters, versions).
                The order of keys does not matter.
            make: writes its files into the folder it is given. It may return the seconds of the
                part that is to count as the cost (without loading what it works on, say); else
                the whole call counts. Its exception is passed on and leaves nothing behind.

        Raises:
            ArtifactMissing: it is not there, and this store may not make it.
        """
        path = self.path_of(kind, key)
        found = _read(path, key, "is damaged" + " and will be made anew" * self.may_make)
        if found is not None:
            return found
        if not self.may_make:
            raise ArtifactMissing(f"{kind} {path.name} is not made yet")
        making = path.with_name(f".making-{path.name}-{uuid.uuid4().hex}")
        making.mkdir(parents=True)
        try:
            began_s = time.perf_counter()
            counted_s = make(making)
            seconds = time.perf_counter() - began_s if counted_s is None else counted_s
            if (making / META_NAME).exists():
                raise ValueError(f"{kind}: an artifact may not contain a file called {META_NAME}")
            files: dict[str, tuple[str, int]] = {
                file.relative_to(making).as_posix(): (_hash_file(file), file.stat().st_size)
                for file in sorted(making.rglob("*"))
                if file.is_file()
            }
            meta = {
                "key": json.loads(_canonical(key)),
                "make_seconds": seconds,
                "files": {n: {"blake2b": h, "bytes": size} for n, (h, size) in files.items()},
            }
            (making / META_NAME).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            winner = _publish(making, path, key)
            if winner is not None:
                return winner
            return Artifact(path, False, seconds, sum(size for _, size in files.values()))
        finally:
            shutil.rmtree(making, ignore_errors=True)  # gone already when it was published


def _publish(making: Path, path: Path, key: Mapping[str, Json]) -> Artifact | None:
    """Rename `making` to `path`, or return what another process put there meanwhile."""
    while True:
        try:
            making.rename(path)  # fails where a folder with content stands
        except OSError:
            if not path.exists():
                raise
            found = _read(path, key, None)
            if found is not None:
                return found
            _discard(path)
        else:
            return None


def _canonical(key: Mapping[str, Json]) -> str:
    _check_names(key)
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check_names(value: Json) -> None:
    """json.dumps would silently turn {1: ...} into {"1": ...}: two keys, one artifact."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"an artifact key names its parts by text, not by {name!r}")
            _check_names(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check_names(item)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _read(path: Path, key: Mapping[str, Json], damage: str | None) -> Artifact | None:
    """The intact artifact at `path`, or None where there is none or it is damaged, which is
    logged in the words of `damage`, if any."""
    if not path.exists():
        return None
    try:
        meta = json.loads((path / META_NAME).read_text(encoding="utf-8"))
        if meta["key"] != json.loads(_canonical(key)):
            raise ValueError(f"{META_NAME} belongs to another key")
        for name, recorded in meta["files"].items():
            if _hash_file(path / name) != recorded["blake2b"]:
                raise ValueError(f"{name} does not have its recorded hash")
        seconds = float(meta["make_seconds"])
        size_bytes = sum(int(recorded["bytes"]) for recorded in meta["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if damage is not None:
            _log.warning("artifact %s %s: %s", path, damage, error)
        return None
    return Artifact(path, True, seconds, size_bytes)


def _discard(path: Path) -> None:
    """Take a damaged folder away in one step, so that nobody sees half of it."""
    aside = path.with_name(f".making-{path.name}-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another process was quicker
    shutil.rmtree(aside)
