"""A directory that is either what was saved or an error, whatever happened while it was written.

The data files of a save bear names of their own; only `manifest.json` says which ones belong
together, with their hashes. It is replaced in one step after all of them are on the disk, so that
a reader sees the whole old state or the whole new one, and a process killed at any moment leaves
the old one and some files that nobody refers to (the next save deletes them).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capibench.errors import DataError

FORMAT = 1
MANIFEST_NAME = "manifest.json"
INDEX_KIND = "index"  # what `kind` is for a single index, of whatever type
_DATA_SUFFIX = ".data"
_UNFINISHED_SUFFIX = ".unfinished"


@dataclass(frozen=True)
class Saved:
    """A directory whose files have the hashes that they should have."""

    facts: Mapping[str, Any]  # what the writer said beside its files
    files: Mapping[str, Path]
    num_bytes: int  # of the files


def save_directory(
    folder: Path,
    kind: str,
    facts: Mapping[str, Any],
    writers: Mapping[str, Callable[[Path], None]],
) -> None:
    """Make `folder` hold exactly these files and facts, replacing in one step what it held.

    Args:
        folder: made if missing. Of several that save to it one waits for the other, and the last
            one's content stays; any number may read meanwhile.
        kind: of the content; `load_directory` asks for it.
        facts: JSON.
        writers: name → a function that writes the file it is given the path of.

    Raises:
        FileExistsError: the folder holds files that no save has written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        _replace_content(folder, kind, facts, writers)


def _replace_content(
    folder: Path,
    kind: str,
    facts: Mapping[str, Any],
    writers: Mapping[str, Callable[[Path], None]],
) -> None:
    strangers = [p.name for p in folder.iterdir() if not _is_ours(p)]
    if strangers:
        raise FileExistsError(
            f"{folder}: got a directory with {sorted(strangers)[0]} in it; expected an empty one, "
            "or one that was saved here before"
        )
    save_id = uuid.uuid4().hex
    files = {}
    for name, write in writers.items():
        path = folder / f"{name}-{save_id}{_DATA_SUFFIX}"
        write(path)
        _to_disk(path)
        files[name] = {"file": path.name, "bytes": path.stat().st_size, "blake2b": _hash(path)}
    content = {"format": FORMAT, "kind": kind, "facts": dict(facts), "files": files}
    manifest = {**content, "checksum": _checksum(content)}
    unfinished = folder / f"{MANIFEST_NAME}-{save_id}{_UNFINISHED_SUFFIX}"
    unfinished.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _to_disk(unfinished)
    unfinished.replace(folder / MANIFEST_NAME)
    _to_disk(folder)
    wanted = {MANIFEST_NAME, *(str(entry["file"]) for entry in files.values())}
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def load_directory(folder: Path, kind: str) -> Saved:
    """What was last saved to `folder`, every byte checked.

    Raises:
        DataError: nothing was saved there, the save was never finished, it is of another kind or
            format, or a file is missing or not as it was written.
    """
    while True:
        before = _manifest_text(folder, kind)
        try:
            return _checked(folder, kind, before)
        except DataError:
            if _manifest_text(folder, kind) == before:
                raise  # else a save has replaced what was being read


def _manifest_text(folder: Path, kind: str) -> str:
    try:
        return (folder / MANIFEST_NAME).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        state = "half written: it has no manifest" if folder.is_dir() else "no such directory"
        raise DataError(f"{folder}: not a saved {kind}: {state}") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder}: not a saved {kind}: it is a file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{folder / MANIFEST_NAME}: damaged: it is no text") from error


def _checked(folder: Path, kind: str, text: str) -> Saved:
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(text)
        given = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: damaged: it is no manifest") from error
    if given != FORMAT:
        raise DataError(f"{folder}: got format {given}; expected {FORMAT}: save it anew")
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise DataError(f"{path}: damaged: it does not have its recorded checksum")
    if manifest["kind"] != kind:
        raise DataError(f"{folder}: got a saved {manifest['kind']}; expected a saved {kind}")
    files = {}
    for name, entry in manifest["files"].items():
        files[name] = folder / entry["file"]
        try:
            actual = _hash(files[name])
        except FileNotFoundError as error:
            raise DataError(f"{files[name]}: missing, though the manifest names it") from error
        if actual != entry["blake2b"]:
            raise DataError(f"{files[name]}: damaged: it does not have its recorded hash")
    num_bytes = sum(int(entry["bytes"]) for entry in manifest["files"].values())
    return Saved(manifest["facts"], files, num_bytes)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait for other saves, of this process or another, to the same folder. The lock is on the
    directory itself, and a process that dies lets go of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_ours(path: Path) -> bool:
    return path.name == MANIFEST_NAME or path.suffix in (_DATA_SUFFIX, _UNFINISHED_SUFFIX)


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _to_disk(path: Path) -> None:
    """Wait until the file, or the directory's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
