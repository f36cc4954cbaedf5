"""Which workers have room, and how long each was busy."""

from __future__ import annotations

from capibench.batching.strategy import Strategy, WorkerView

_IDLE = WorkerView(num_running=0, busy_since_s=None)
_NEVER_S = _IDLE.failed_s


class Workers:
    """The workers of one batcher; items enter and leave them in any number at a time.

    A worker that runs joined batches is busy from the first item's entry until the last one's
    leave: that span counts once.
    """

    def __init__(self, count: int, strategy: Strategy) -> None:
        # Items that one of them runs at once, as far as its room goes.
        self._most = strategy.max_batch_size if strategy.joins_running else 1
        self._views = [_IDLE] * count
        self._busy_s = [0.0] * count
        self._item_s = 0.0  # seconds times the items that ran in them, on all workers
        self._changed_s = [0.0] * count  # until when that is counted
        self._left_s = [0.0] * count  # when items of it last did not run any more
        self.num_busy = 0
        self.num_open = count  # those that have room for at least one item

    def views(self) -> tuple[WorkerView, ...]:
        """As strategies see them."""
        return tuple(self._views)

    def enter(self, worker: int, num_items: int, now_s: float) -> None:
        """`num_items` begin to run."""
        before = self._views[worker]
        self._count_items(worker, before.num_running, now_s)
        if before.busy_since_s is None:
            self.num_busy += 1
            since_s = now_s
        else:
            since_s = before.busy_since_s
        self._become(worker, before.num_running + num_items, since_s)

    def leave(self, worker: int, num_items: int, now_s: float) -> None:
        """`num_items` do not run any more."""
        before = self._views[worker]
        self._count_items(worker, before.num_running, now_s)
        self._left_s[worker] = now_s
        running = before.num_running - num_items
        assert running >= 0
        assert before.busy_since_s is not None
        if running:
            self._become(worker, running, before.busy_since_s)
        else:
            self.num_busy -= 1
            self._busy_s[worker] += now_s - before.busy_since_s
            self._become(worker, 0, None)

    def answered(self, worker: int) -> None:
        """It has answered somebody: whatever it failed at before is over."""
        before = self._views[worker]
        if before.num_failures:
            self._views[worker] = before._replace(num_failures=0, failed_s=_NEVER_S)

    def failed(self, worker: int) -> None:
        """A batch whose last items have just left is over, and it answered nobody in it."""
        before = self._views[worker]
        self._views[worker] = before._replace(
            num_failures=before.num_failures + 1, failed_s=self._left_s[worker]
        )

    def num_running(self) -> int:
        """Items on all workers together."""
        return sum(view.num_running for view in self._views)

    def mean_running(self, now_s: float) -> float | None:
        """Items that ran at once on a worker, over the time in which it was not idle; None: no
        worker was busy for any time."""
        busy_s = sum(self.busy_s(now_s))
        for worker, view in enumerate(self._views):
            self._count_items(worker, view.num_running, now_s)
        return self._item_s / busy_s if busy_s > 0 else None

    def busy_s(self, now_s: float) -> tuple[float, ...]:
        """Seconds per worker in which it was not idle, up to `now_s`."""
        return tuple(
            total_s if view.busy_since_s is None else total_s + now_s - view.busy_since_s
            for total_s, view in zip(self._busy_s, self._views, strict=True)
        )

    def _count_items(self, worker: int, num_running: int, now_s: float) -> None:
        self._item_s += num_running * (now_s - self._changed_s[worker])
        self._changed_s[worker] = now_s

    def _become(self, worker: int, num_running: int, busy_since_s: float | None) -> None:
        before = self._views[worker]
        most = self._most
        self.num_open += (num_running < most) - (before.num_running < most)
        self._views[worker] = WorkerView(
            num_running, busy_since_s, before.num_failures, before.failed_s
        )
