"""The laws of one decision: the batcher enforces them, the contract test explores them.

A strategy that breaks one would otherwise show as a hang or a lost request far from its cause.
"""

from __future__ import annotations

from collections.abc import Sequence

from capibench.batching.strategy import Dispatch, QueueView, Shed, Strategy, WaitUntil


def broken_law(
    decision: Dispatch | WaitUntil | Shed, view: QueueView, strategy: Strategy
) -> str | None:
    """Why `decision` is not a legal answer of `strategy` to `view`, or None."""
    if isinstance(decision, WaitUntil):
        if not decision.time_s > view.now_s:
            return f"asked at {view.now_s} s, it waits until {decision.time_s} s"
        if view.draining and decision.time_s == float("inf"):
            return "draining, it waits for ever"
        if decision.time_s > view.items.earliest_bound_s and _has_sound_room(view, strategy):
            return f"it waits past an item's own bound of {view.items.earliest_bound_s} s"
        return None
    indices, most = decision.indices, strategy.max_batch_size
    if isinstance(decision, Dispatch):
        if not 0 <= decision.worker < len(view.workers):
            return f"worker {decision.worker} of {len(view.workers)}"
        running = view.workers[decision.worker].num_running
        if running and not strategy.joins_running:
            return f"worker {decision.worker} is not an idle one"
        if not 1 <= len(indices) <= most - running:
            return f"a batch of {len(indices)} items; expected 1 to {most - running}"
    return _bad_indices(indices, len(view.items))


def _has_sound_room(view: QueueView, strategy: Strategy) -> bool:
    """Whether a worker has room and answers its batches, or none of all workers does."""
    most = strategy.max_batch_size if strategy.joins_running else 1
    sound = [worker for worker in view.workers if not worker.num_failures]
    return not sound or any(worker.num_running < most for worker in sound)


def _bad_indices(indices: Sequence[int], waiting: int) -> str | None:
    if (
        not indices
        or len(set(indices)) != len(indices)
        or min(indices) < 0
        or max(indices) >= waiting
    ):
        return f"indices {list(indices)} of {waiting} items"
    return None
