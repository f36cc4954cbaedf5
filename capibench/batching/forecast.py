"""How fast requests arrive, told from how the queue grew between two decisions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class ArrivalForecast:
    """Exponentially weighted rate of arrivals; pure, told the time.

    An arrival that is `window_s` old counts 1/e. While nobody comes, the forecast falls: it never
    exceeds one arrival per time since the last, so a burst that is over is not waited for.
    """

    window_s: float
    _counted: float = field(init=False, repr=False, default=0.0)  # arrivals, weighted
    _watched_s: float = field(init=False, repr=False, default=0.0)  # time, weighted
    _now_s: float | None = field(init=False, repr=False, default=None)
    _last_arrival_s: float = field(init=False, repr=False, default=0.0)
    _left: int = field(init=False, repr=False, default=0)

    def saw(self, waiting: int, last_arrival_s: float, now_s: float) -> None:
        """`waiting` items are in the queue now, the last of which came at `last_arrival_s`."""
        self._last_arrival_s = last_arrival_s
        if self._now_s is None:  # how long these took to gather is not known
            self._now_s = now_s
            return
        passed_s = now_s - self._now_s
        fading = math.exp(-passed_s / self.window_s)
        watched_s = self.window_s * (1.0 - fading)
        came = float(max(0, waiting - self._left))
        if passed_s > 0:  # they came evenly over this time, so the earlier ones have faded
            came *= watched_s / passed_s
        self._counted = self._counted * fading + came
        self._watched_s = self._watched_s * fading + watched_s
        self._now_s = now_s

    def left(self, waiting: int) -> None:
        """So many items stay in the queue after the decision."""
        self._left = waiting

    @property
    def rate_per_s(self) -> float:
        """Arrivals per second; 0 while nothing is known."""
        if self._now_s is None or self._watched_s == 0.0:
            return 0.0
        rate_per_s = self._counted / self._watched_s
        quiet_s = self._now_s - self._last_arrival_s
        return rate_per_s if quiet_s * rate_per_s <= 1.0 else 1.0 / quiet_s
