"""Collect for a fixed time, then send everything: the window of stream processing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


@dataclass
class TimeBased:
    """A window opens with the first item and closes `window_ms` later, whatever its size.

    Only time triggers, as in a processing-time window of the dataflow model (Akidau et al. 2015).
    That is what sets it apart from `fixed_size`: a full batch does not cut the window short, and at
    the close everything that arrived in the window leaves, in as many batches as that takes; nobody
    who was too many for the first batch begins a second wait. The next item opens a new window.
    While the workers are busy past the close, later arrivals may fill up the leaving batches.
    An item's own bound closes the window early, because it may wait no longer.
    """

    max_batch_size: int
    window_ms: float
    _closes_s: float = field(init=False, repr=False, default=float("-inf"))

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 0 <= self.window_ms < float("inf"):
            raise ValueError(f"window_ms: got {self.window_ms}; expected at least 0, finite")

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        oldest_s = view.items[0].enqueued_s
        if oldest_s > self._closes_s:  # everyone of the last window is gone
            self._closes_s = oldest_s + self.window_ms / 1000
        bound_s = view.items.earliest_bound_s
        if view.now_s >= self._closes_s:
            reason = "window"
        elif view.draining:
            reason = "drain"
        elif view.now_s >= bound_s:
            reason = "max_wait"
            self._closes_s = view.now_s
        else:
            return WaitUntil(min(self._closes_s, bound_s))
        batch = view.batch(self.max_batch_size)
        return view.probe_or_rest() or Dispatch(batch, view.idle_worker(), reason)
