"""Lets a tuner choose an index for a user's vectors, with the user's queries or without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capibench.embedder.embedder import Vectors
from capibench.index.optimizer.exam import Contents, held_out_places
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.candidates import Serving, node_of_arm
from capibench.index.tuner.shown import shown
from capibench.index.tuner.tune import tune
from capibench.index.tuner.tuned import Tuned
from capibench.index.tuning.budgeted import Budgeted

_EXACT = "flat"


@dataclass(frozen=True)
class Chosen:
    """The configuration of an index, and how it was found; `tuned` None: nothing was measured."""

    node: Mapping[str, Any]
    family: str
    tuned: Tuned | None
    reason: str  # where nothing was measured


def choose(
    tuning: Budgeted,
    contents: Contents,
    queries: Vectors | None,
    k: int,
    serving: Serving,
    configured: StoredIndex | None,
) -> Chosen:
    """An index for `contents`, by `queries` or, for None, by vectors held out from the rest.

    Raises:
        ConfigError: a candidate cannot be configured so.
        ValueError: nothing can be built.
    """
    asked, rest = questions(contents, queries, 2 * tuning.num_queries, tuning.seed)
    if asked is None:
        arms = tuning.arms()
        exact = [arm for arm in arms if arm.family == _EXACT]
        arm = (exact or list(arms))[0]
        reason = (
            f"{len(contents.ids)} vectors are too few to hold some out as queries: {arm.name} was "
            "taken unmeasured"
        )
        return Chosen(node_of_arm(arm, serving), arm.family, None, reason)
    with shown(tuning.tuning_s) as report:
        tuned = tune(
            tuning,
            rest.vectors,
            asked[0::2],
            asked[1::2],
            min(k, len(rest.ids)),
            serving,
            configured,
            report,
        )
    return Chosen(tuned.node, tuned.found.verdict.chosen.arm.family, tuned, "")


def questions(
    contents: Contents, queries: Vectors | None, num_wanted: int, seed: int
) -> tuple[Vectors | None, Contents]:
    """What to ask, and the contents to ask it of; None where there is nothing to ask."""
    if queries is not None:
        return queries, contents
    places = held_out_places(len(contents.ids), num_wanted, seed)
    if not len(places):
        return None, contents
    return contents.vectors[places], contents.without(places)
