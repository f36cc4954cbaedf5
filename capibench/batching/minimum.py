"""Holding small batches back, for strategies that have no such wait of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capibench.batching.strategy import LearnsService, Served, WaitUntil

if TYPE_CHECKING:
    from capibench.batching.strategy import Dispatch, QueueView, Shed, Strategy


class AtLeast:
    """Asks `strategy` only when `min_batch_size` items wait, or a batch that is full (of tokens,
    where there is a budget), or the oldest has waited long enough.

    Long enough is `max_wait_ms`, or an item's own bound if that is earlier. When nothing more will
    come (draining), nothing is held back.
    """

    def __init__(self, strategy: Strategy, min_batch_size: int, max_wait_ms: float) -> None:
        if min_batch_size > strategy.max_batch_size:
            raise ValueError(
                f"min_batch_size: got {min_batch_size}; "
                f"expected 1 to max_batch_size ({strategy.max_batch_size})"
            )
        self._strategy = strategy
        self._min_batch_size = min_batch_size
        self._max_wait_s = max_wait_ms / 1000

    @property
    def max_batch_size(self) -> int:
        return self._strategy.max_batch_size

    @property
    def joins_running(self) -> bool:
        return self._strategy.joins_running

    def decide(self, view: QueueView) -> Dispatch | WaitUntil | Shed:
        if len(view.items) < self._min_batch_size and not view.draining:
            oldest_s = view.items[0].enqueued_s
            latest_s = min(oldest_s + self._max_wait_s, view.items.earliest_bound_s)
            most = self.max_batch_size
            if view.now_s < latest_s and not view.is_full(view.batch(most), most):
                return WaitUntil(latest_s)
        return self._strategy.decide(view)

    def observe(self, served: Served) -> None:
        if isinstance(self._strategy, LearnsService):
            self._strategy.observe(served)
