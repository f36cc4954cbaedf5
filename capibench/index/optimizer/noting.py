"""What is written down beside an index when it was chosen or measured."""

from __future__ import annotations

from capibench.index.optimizer.choosing import Chosen
from capibench.index.optimizer.exam import estimate
from capibench.index.optimizer.kept import Kept
from capibench.index.tuner.tune import AS_CONFIGURED
from capibench.index.tuning.points import Point

_IN_A_FILE_OF_THEIR_OWN = ("points",)


def note_choice(kept: Kept, chosen: Chosen) -> None:
    """How the index was chosen, and the recall that came with it."""
    if chosen.family != AS_CONFIGURED:
        kept.note(family=chosen.family)
    if chosen.tuned is None:
        kept.note(tuned={"reasons": [chosen.reason], "seconds": None})
        return
    record = chosen.tuned.to_json()
    kept.points = record["points"]
    found = chosen.tuned.found.verdict.chosen
    kept.note(
        tuned={n: value for n, value in record.items() if n not in _IN_A_FILE_OF_THEIR_OWN},
        recall=estimate(chosen.tuned.recall, found.exact),
        recall_k=chosen.tuned.recall.k,
        num_checked=kept.index.num_vectors,
        num_changed=0,
    )


def note_recall(kept: Kept, point: Point) -> None:
    """What was measured of the index as it is now."""
    kept.note(
        recall=estimate(point.recall, point.exact),
        recall_k=point.recall.k,
        num_checked=kept.index.num_vectors,
        num_changed=0,
    )
