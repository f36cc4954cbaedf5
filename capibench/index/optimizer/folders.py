"""Where kept indexes lie, and which of them are in memory."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capibench.errors import ConfigError
from capibench.index.optimizer.kept import Kept, stamp_of

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LOCK_SUFFIX = ".lock"
_DELETED_PREFIX = ".deleted-"


class Folders:
    """One folder per index, named like it. A lock file beside it (".NAME.lock") is held by whoever
    changes it; readers need none, since a save is one step."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, Kept] = {}

    def names(self) -> list[str]:
        """Of all indexes that were saved here."""
        if not self._root.is_dir():
            return []
        return sorted(
            p.name for p in self._root.iterdir() if _NAME.fullmatch(p.name) and stamp_of(p)
        )

    def exists(self, name: str) -> bool:
        return bool(stamp_of(self._path(name)))

    def open(self, name: str) -> Kept:
        """As it is on the disk now; read anew only where that has changed.

        Raises:
            ConfigError: no such index. DataError: it is damaged.
        """
        path = self._path(name)
        if not path.is_dir():
            known = ", ".join(self.names()) or "none is there"
            raise ConfigError("index_name", f"got {name!r}; expected one of: {known}")
        kept = self._open.get(name)
        if kept is None or kept.stamp != stamp_of(path):
            kept = self._open[name] = Kept.load(path)
        return kept

    def hold(self, kept: Kept) -> None:
        """Keep what was just saved in memory."""
        self._open[kept.provenance.name] = kept

    def forget(self, name: str) -> None:
        """Read it from the disk when it is next asked for."""
        self._open.pop(name, None)

    def remove(self, name: str) -> None:
        """Delete it; gone in one step, whatever happens then."""
        path = self._path(name)
        if not self.exists(name):
            raise ConfigError("index_name", f"got {name!r}; expected one that is there")
        self.forget(name)
        aside = path.with_name(f"{_DELETED_PREFIX}{name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)

    def num_bytes(self) -> int:
        """Of all files of all indexes."""
        return sum(
            file.stat().st_size
            for name in self.names()
            for file in self._path(name).iterdir()
            if file.is_file()
        )

    @contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """The index's folder, while no other process changes it."""
        path = self._path(name)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{name}{_LOCK_SUFFIX}").open("w")
        except OSError as error:
            raise ConfigError(
                "indices_dir", f"got {str(self._root)!r} ({error}); expected a writable folder"
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path

    def _path(self, name: str) -> Path:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                "index_name",
                f"got {name!r}; expected letters, digits, '_', '-' and '.', beginning with a "
                "letter, a digit or '_'",
            )
        return self._root / name
