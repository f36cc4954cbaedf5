"""What `optimize_index` does to an index, and what it measures before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capibench.config import node_of
from capibench.errors import ConfigError
from capibench.index.optimizer.choosing import Chosen, choose, questions
from capibench.index.optimizer.exam import Contents, Exam, figures
from capibench.index.optimizer.kept import Kept
from capibench.index.optimizer.names import OptimizationStrategy, OptimizationType
from capibench.index.optimizer.results import Figures
from capibench.index.optimizer.settings import changed, settings_of, tuning_of
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.candidates import Serving, built, check_arms
from capibench.index.tuning.points import Point


@dataclass(frozen=True)
class Outcome:
    """The points measured before and after, and the index that is better, if one is."""

    better: StoredIndex | None  # holds all vectors; None: leave the index as it was
    chosen: Chosen | None  # how a tuner found it
    before: Figures
    after: Figures
    after_point: Point
    reasons: tuple[str, ...]


def optimize(
    kept: Kept, folder: Path, kind: OptimizationType, changes: Mapping[str, Any] | None
) -> Outcome:
    """Try it on twins of the index; what is kept is not changed.

    Args:
        kept: the index, as saved in `folder`.
        folder: from which the twins are read.
        kind: what to do.
        changes: values in place of those by which a tuner is to choose; None: none.

    Raises:
        ConfigError: `changes` are wrong.
        ValueError: there are too few vectors to measure anything.
    """
    settings = {}
    if kind is not OptimizationType.REBALANCE:
        compresses = kind is OptimizationType.COMPRESS
        settings = changed(_compressing(kept) if compresses else kept.provenance.tuning, changes)
        arms = tuning_of(settings).arms()
        check_arms(arms, Serving.of(kept.index), "custom_config.candidates")
    elif changes:
        raise ConfigError("custom_config", "got some; expected none, since nothing is chosen")
    exam, before = _examined(kept, folder)
    if exam is None or before is None:
        raise ValueError(
            f"{kept.provenance.name}: got {kept.index.num_vectors} vectors; expected enough to "
            "hold some out as queries"
        )
    chosen: Chosen | None = None
    if kind is OptimizationType.REBALANCE:
        _, after = _examined(kept, folder)
        assert after is not None
        after.rebuild()
    else:
        chosen = choose(
            tuning_of(settings),
            exam.contents,
            None if kept.queries is None else kept.queries[0::2],
            kept.provenance.k,
            Serving.of(kept.index),
            kept.index,
        )
        after = built(chosen.node)
        after.build(exam.contents.vectors, exam.contents.ids)
    points = exam.points({"before": before, "after": after}, kept.provenance.version)
    reasons, improves = _judged(kind, chosen, points["before"], points["after"])
    better = None
    if improves:
        contents = Contents.of(kept.index)
        better = built(node_of(after))
        better.build(contents.vectors, contents.ids)
    return Outcome(
        better,
        chosen,
        figures(points["before"], before),
        figures(points["after"], after),
        points["after"],
        reasons,
    )


def _judged(
    kind: OptimizationType, chosen: Chosen | None, before: Point, after: Point
) -> tuple[tuple[str, ...], bool]:
    """Why, and whether, the index is to be replaced."""
    if kind is OptimizationType.REBALANCE:
        return ("its structure was learnt anew from the vectors that it holds",), True
    assert chosen is not None
    if chosen.tuned is None:
        return (chosen.reason,), False
    preference, found = chosen.tuned.preference, chosen.tuned.reasons
    limits = preference.limits
    if kind is OptimizationType.COMPRESS:
        if after.memory_bytes >= before.memory_bytes:
            return (*found, f"not smaller than {before.memory_bytes} bytes: left as it was"), False
        if "recall" in limits.broken(after) and "recall" not in limits.broken(before):
            return (*found, "smaller, but without the recall that is promised: left"), False
        return found, True
    if limits.broken(before) and not limits.broken(after):
        return (*found, "the index as it was does not keep the limits, and this does"), True
    if preference.order(after) < preference.order(before) and preference.told_apart(after, before):
        return found, True
    return (*found, "not better beyond the noise of measuring: left as it was"), False


def measured(kept: Kept, folder: Path) -> Point | None:
    """Recall and latency of the index as it is now; None with too few vectors to hold some out."""
    exam, twin = _examined(kept, folder)
    if exam is None or twin is None:
        return None
    return exam.points({"now": twin}, kept.provenance.version)["now"]


def _examined(kept: Kept, folder: Path) -> tuple[Exam | None, StoredIndex | None]:
    """Questions, and a twin of the saved index that does not hold them but has learnt the same.
    Of a user's own queries the half that nothing is chosen by is asked."""
    tuning, contents = tuning_of(kept.provenance.tuning), Contents.of(kept.index)
    queries = None if kept.queries is None else kept.queries[1::2][: tuning.num_queries]
    seed = tuning.seed + kept.provenance.version
    asked, rest = questions(contents, queries, tuning.num_queries, seed)
    if asked is None:
        return None, None
    twin = Kept.load(folder).index
    held_out = contents.ids[~np.isin(contents.ids, rest.ids)]
    if len(held_out):
        twin.remove(held_out)
        twin.compact()
    return Exam.of(rest, asked, kept.provenance.k, kept.index.metric), twin


def _compressing(kept: Kept) -> dict[str, Any]:
    """What MEMORY wants, at the recall and in the time that the index's own strategy has."""
    own = kept.provenance.tuning
    same = ("min_recall", "confidence", "max_latency_ms", "tuning_s", "num_queries", "halving")
    return settings_of(OptimizationStrategy.MEMORY, {name: own[name] for name in same})
