"""The laws of one decision: the batcher enforces them, the contract test explores them.

A strategy that breaks one would otherwise show as a hang or a lost request far from its cause.
"""

from __future__ import annotations

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


def broken_law(decision: Dispatch | WaitUntil, view: QueueView, max_batch_size: int) -> str | None:
    """Why `decision` is not a legal answer to `view`, or None."""
    if isinstance(decision, WaitUntil):
        if not decision.time_s > view.now_s:
            return f"asked at {view.now_s} s, it waits until {decision.time_s} s"
        if view.draining and decision.time_s == float("inf"):
            return "draining, it waits for ever"
        if decision.time_s > view.items.earliest_bound_s:
            return f"it waits past an item's own bound of {view.items.earliest_bound_s} s"
        return None
    indices, waiting = decision.indices, len(view.items)
    if not 0 <= decision.worker < len(view.workers) or (
        view.workers[decision.worker].busy_since_s is not None
    ):
        return f"worker {decision.worker} is not an idle one"
    if not 1 <= len(indices) <= max_batch_size:
        return f"a batch of {len(indices)} items; expected 1 to {max_batch_size}"
    if len(set(indices)) != len(indices) or min(indices) < 0 or max(indices) >= waiting:
        return f"indices {list(indices)} of {waiting} items"
    return None
