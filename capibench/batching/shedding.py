"""Giving up in time what is lost anyway, so that it takes no place from what is not."""

from __future__ import annotations

from collections.abc import Sequence

from capibench.batching.strategy import QueueView, Shed

GIVEN_UP = "deadline_unreachable"  # the reason that callers and metrics are told
LOOKED_AT = 256  # of the line at most: a decision must not cost more the longer the queue is


class Shedding:
    """Sheds what a forecast says is lost, but never believes a forecast for ever.

    If the learned service is too long for everybody (a cold start, a machine that was slow for a
    while), shedding all would also end the learning, and nobody would be served again. So after all
    in sight were given up, the next ones are served, late or not, before that may happen again.
    """

    def __init__(self) -> None:
        self._must_serve = False

    def observed(self) -> None:
        """A batch ran: the forecast is fresh."""
        self._must_serve = False

    def unreachable(self, view: QueueView, shortest_s: float) -> Shed | None:
        """Who would miss his deadline even if he left now in the fastest batch known, of the
        `LOOKED_AT` first in the line. Those behind them are in nobody's way yet.

        Looks at the queue only when somebody is lost.
        """
        horizon_s = view.now_s + shortest_s
        if not view.items.earliest_deadline_s < horizon_s:
            return None
        seen = view.items.first(LOOKED_AT)
        return self._shed(view, seen, horizon_s, more_wait=len(view.items) > len(seen))

    def late(self, view: QueueView, batch: Sequence[int], service_s: float) -> Shed | None:
        """Who of a batch that takes `service_s` from now would miss his deadline in it."""
        ends_s = view.now_s + service_s
        if not view.items.earliest_deadline_s < ends_s:
            return None
        return self._shed(view, batch, ends_s, more_wait=False)

    def _shed(
        self, view: QueueView, indices: Sequence[int], horizon_s: float, more_wait: bool
    ) -> Shed | None:
        lost = sorted(index for index in indices if view.items[index].deadline_s < horizon_s)
        if not lost:
            return None
        if len(lost) == len(indices) and not more_wait:
            if self._must_serve:
                return None
            self._must_serve = True
        return Shed(lost, GIVEN_UP)
