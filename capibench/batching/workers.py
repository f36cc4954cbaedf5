"""Which workers have room, and how long each was busy."""

from __future__ import annotations

from capibench.batching.strategy import Strategy, WorkerView

_IDLE = WorkerView(num_running=0, busy_since_s=None)


class Workers:
    """The workers of one batcher; items enter and leave them in any number at a time.

    A worker that runs joined batches is busy from the first item's entry until the last one's
    leave: that span counts once.
    """

    def __init__(self, count: int, strategy: Strategy) -> None:
        self._strategy = strategy
        self._views = [_IDLE] * count
        self._busy_s = [0.0] * count
        self.num_busy = 0
        self.num_open = count  # those that have room for at least one item

    def views(self) -> tuple[WorkerView, ...]:
        """As strategies see them."""
        return tuple(self._views)

    def enter(self, worker: int, num_items: int, now_s: float) -> None:
        """`num_items` begin to run."""
        before = self._views[worker]
        if before.busy_since_s is None:
            self.num_busy += 1
            since_s = now_s
        else:
            since_s = before.busy_since_s
        self._become(worker, WorkerView(before.num_running + num_items, since_s))

    def leave(self, worker: int, num_items: int, now_s: float) -> None:
        """`num_items` do not run any more."""
        before = self._views[worker]
        running = before.num_running - num_items
        assert running >= 0
        assert before.busy_since_s is not None
        if running:
            self._become(worker, WorkerView(running, before.busy_since_s))
        else:
            self.num_busy -= 1
            self._busy_s[worker] += now_s - before.busy_since_s
            self._become(worker, _IDLE)

    def num_running(self) -> int:
        """Items on all workers together."""
        return sum(view.num_running for view in self._views)

    def busy_s(self, now_s: float) -> tuple[float, ...]:
        """Seconds per worker in which it was not idle, up to `now_s`."""
        return tuple(
            total_s if view.busy_since_s is None else total_s + now_s - view.busy_since_s
            for total_s, view in zip(self._busy_s, self._views, strict=True)
        )

    def _become(self, worker: int, view: WorkerView) -> None:
        most = self._strategy.max_batch_size if self._strategy.joins_running else 1
        self.num_open += (view.num_running < most) - (self._views[worker].num_running < most)
        self._views[worker] = view
