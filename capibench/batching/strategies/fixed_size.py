"""Wait for a full batch, but not for ever: the size-or-timeout rule of most model servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from capibench.batching.strategy import Dispatch, QueueView, WaitUntil


@dataclass
class FixedSize:
    """A batch leaves when it is full. What is not full leaves by the age of the oldest item: from
    `full_wait_ms` on if it has `min_batch_size` items, at `max_wait_ms` whatever it has.

    The rule of TensorFlow Serving (`max_batch_size`, `batch_timeout_micros`; Olston et al. 2017)
    and of Triton's dynamic batcher (`preferred_batch_size`, `max_queue_delay_microseconds`), which
    has the two thresholds of size. What a full batch leaves behind waits for a batch of its own.
    When nothing more will come (draining) the rest leaves at once.
    """

    max_batch_size: int
    min_batch_size: int
    full_wait_ms: float
    max_wait_ms: float

    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size: got {self.max_batch_size}; expected at least 1")
        if not 1 <= self.min_batch_size <= self.max_batch_size:
            raise ValueError(
                f"min_batch_size: got {self.min_batch_size}; "
                f"expected 1 to max_batch_size ({self.max_batch_size})"
            )
        if not 0 <= self.max_wait_ms < float("inf"):
            raise ValueError(f"max_wait_ms: got {self.max_wait_ms}; expected at least 0, finite")
        if not 0 <= self.full_wait_ms <= self.max_wait_ms:
            raise ValueError(
                f"full_wait_ms: got {self.full_wait_ms}; "
                f"expected 0 to max_wait_ms ({self.max_wait_ms})"
            )

    def decide(self, view: QueueView) -> Dispatch | WaitUntil:
        waiting = len(view.items)
        enough = waiting >= self.min_batch_size
        patience_ms = self.full_wait_ms if enough else self.max_wait_ms
        timeout_s = view.items[0].enqueued_s + patience_ms / 1000
        bound_s = view.items.earliest_bound_s
        if self._is_full(view):
            reason = "full"
        elif view.draining:
            reason = "drain"
        elif view.now_s >= timeout_s:
            reason = "timeout"
        elif view.now_s >= bound_s:
            reason = "max_wait"
        else:
            return WaitUntil(min(timeout_s, bound_s))
        batch = view.batch(self.max_batch_size)
        return view.probe_or_rest() or Dispatch(batch, view.idle_worker(), reason)

    def _is_full(self, view: QueueView) -> bool:
        if view.composition.max_batch_tokens is None:
            return len(view.items) >= self.max_batch_size
        return view.is_full(view.batch(self.max_batch_size), self.max_batch_size)
