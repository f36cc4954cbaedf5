"""Wait for a full batch, but not for ever: the size-or-timeout rule of most model servers."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


@dataclass
class FixedSize:
    """A batch leaves when it is full, or when its oldest item has waited `max_wait_ms`.

    The rule of TensorFlow Serving (`max_batch_size`, `batch_timeout_micros`; Olston et al. 2017)
    and of Triton's dynamic batcher. What a full batch leaves behind waits for a batch of its own.
    When nothing more will come (draining) the rest leaves at once.
    """

    max_batch_size: int
    max_wait_ms: float

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ValueError(f"max_wait_ms: got {self.max_wait_ms}; expected at least 0, finite")

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        timeout_s = view.items[0].enqueued_s + self.max_wait_ms / 1000
        bound_s = view.items.earliest_bound_s
        if len(view.items) >= self.max_batch_size:
            reason = "full"
        elif view.draining:
            reason = "drain"
        elif view.now_s >= timeout_s:
            reason = "timeout"
        elif view.now_s >= bound_s:
            reason = "max_wait"
        else:
            return WaitUntil(min(timeout_s, bound_s))
        return Dispatch(view.items.first(self.max_batch_size), view.idle_worker(), reason)
