"""Service times measured on a real component, read by its modeled counterpart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise


class ServiceTable:
    """Seconds of a call by its number of items: a measured table, since service curves are
    neither affine nor monotone. Between two measured sizes the line that joins them holds;
    more items than were ever measured are served as consecutive batches of the largest size.
    """

    def __init__(self, seconds_by_items: Mapping[int, float]) -> None:
        """Raises: ValueError("service_table_s: ...") if it lacks size 1 or holds a bad time."""
        if 1 not in seconds_by_items or min(seconds_by_items) < 1:
            raise ValueError(
                f"service_table_s: got sizes {sorted(seconds_by_items)}; "
                "expected sizes of at least 1, and 1 among them"
            )
        for num_items, seconds in seconds_by_items.items():
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(
                    f"service_table_s.{num_items}: got {seconds}; expected seconds above 0"
                )
        self._points = sorted(seconds_by_items.items())

    @property
    def largest(self) -> int:
        """Largest measured number of items."""
        return self._points[-1][0]

    def seconds(self, num_items: int) -> float:
        """Seconds that a call with `num_items` items takes; 0 for none."""
        full, rest = divmod(num_items, self.largest)
        return full * self._points[-1][1] + (self._interpolated(rest) if rest else 0.0)

    def _interpolated(self, num_items: int) -> float:
        if num_items == 1:
            return self._points[0][1]
        for (left, left_s), (right, right_s) in pairwise(self._points):
            if num_items <= right:
                share = (num_items - left) / (right - left)
                return left_s + share * (right_s - left_s)
        raise AssertionError("a size above the largest is divided before it comes here")
