"""Changes to kept indexes, each saved as a whole or not made at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from capibench.errors import ConfigError
from capibench.index.optimizer.counts import Counts
from capibench.index.optimizer.folders import Folders
from capibench.index.optimizer.kept import Kept
from capibench.index.optimizer.names import OptimizationType
from capibench.index.optimizer.noting import note_choice, note_recall
from capibench.index.optimizer.optimizing import measured, optimize
from capibench.index.optimizer.results import OptimizationResult
from capibench.index.optimizer.settings import tuning_of
from capibench.index.tuning.drift import has_drifted, must_recheck
from capibench.run_folder import utc_now


class Keeper:
    """What lies in one folder of indexes, and what was done to it through this object. One thread
    at a time."""

    def __init__(self, indices_dir: Path, batch_size: int) -> None:
        """`batch_size`: queries searched at once, by which indexes are timed."""
        self.folders = Folders(indices_dir)
        self.counts: defaultdict[str, Counts] = defaultdict(Counts)
        self._indices_dir = indices_dir
        self._batch_size = batch_size

    def locked(self, name: str) -> AbstractContextManager[Path]:
        """The index's folder, which no other process changes meanwhile."""
        return self.folders.locked(name)

    def open(self, name: str) -> Kept:
        """The index as it is on the disk now.

        Raises:
            ConfigError: no such index. DataError: it is damaged.
        """
        kept = self.folders.open(name)
        kept.index.max_batch_size = self._batch_size
        return kept

    def save(self, kept: Kept, folder: Path) -> None:
        """Save and take it over; ConfigError where the disk refuses."""
        kept.note(updated_at=utc_now())
        try:
            kept.save(folder)
        except OSError as error:
            raise ConfigError(
                "indices_dir",
                f"got {str(self._indices_dir)!r}, where writing failed ({error}); the index is as "
                "it was; expected a writable folder with room",
            ) from error
        self.folders.hold(kept)

    @contextmanager
    def changing(self, name: str) -> Iterator[Kept]:
        """The index, to be changed in memory: saved afterwards, and its recall measured again
        where enough has changed. What failed half-way is forgotten; the disk has it as it was."""
        with self.locked(name) as folder:
            try:
                kept = self.open(name)
                yield kept
                self.save(kept, folder)
                self._recheck(kept, folder)
            except BaseException:
                self.folders.forget(name)
                raise

    def optimized(
        self, name: str, folder: Path, kind: OptimizationType, changes: Mapping[str, Any] | None
    ) -> OptimizationResult:
        """Optimize the index and save it if that made it better. Its lock is held."""
        begin_s = perf_counter()
        kept = self.open(name)
        outcome = optimize(kept, folder, kind, changes)
        if outcome.better is not None:
            kept = replace(kept, index=outcome.better)
            if outcome.chosen is not None:
                note_choice(kept, outcome.chosen)
            note_recall(kept, outcome.after_point)
            self.save(kept, folder)
        return OptimizationResult(
            index_name=name,
            optimization_type=kind.value,
            changed=outcome.better is not None,
            before=outcome.before,
            after=outcome.after if outcome.better is not None else outcome.before,
            tried=outcome.after,
            reasons=outcome.reasons,
            seconds=perf_counter() - begin_s,
            index_version=kept.provenance.version,
        )

    def _recheck(self, kept: Kept, folder: Path) -> None:
        """Measure recall again after many changes, and tune again where it does not hold."""
        tuning, known = tuning_of(kept.provenance.tuning), kept.provenance
        if not must_recheck(known.num_changed, known.num_checked, tuning.recheck_share):
            return
        point = measured(kept, folder)
        if point is None:
            return
        note_recall(kept, point)
        self.save(kept, folder)
        self.counts[known.name].rechecks += 1
        if not point.exact and has_drifted(point.recall, tuning.min_recall, tuning.confidence):
            self.optimized(known.name, folder, OptimizationType.TUNE, None)
            self.counts[known.name].retunings += 1
