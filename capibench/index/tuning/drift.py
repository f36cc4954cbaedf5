"""When an index that was added to and removed from has to prove its recall again."""

from __future__ import annotations

from capibench.index.tuning.objective import RecallSample


def must_recheck(num_changed: int, num_vectors: int, recheck_share: float | None) -> bool:
    """Whether enough was added or removed since recall was last measured.

    Args:
        num_changed: vectors added and removed since then.
        num_vectors: that there were then.
        recheck_share: of them; None: never.
    """
    return recheck_share is not None and num_changed > recheck_share * num_vectors


def has_drifted(measured: RecallSample, min_recall: float, confidence: float) -> bool:
    """Whether the promise is not shown to hold any more: the test that a new choice must pass."""
    return measured.lower_bound(confidence) < min_recall
