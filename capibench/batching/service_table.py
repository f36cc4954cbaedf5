"""How long a worker takes for a batch, as a table: what oracle and simulation agree on.

A table and not a line, because service curves are neither affine nor monotone (a decode step of 16
rows may cost less than one of 8). Pure: no clock, no loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceTable:
    """Seconds by number of requests, for requests that all cost the same.

    A batch of n requests that starts and ends together takes `prefill_s[n - 1]` and then
    `num_steps` times `step_s[n - 1]`. A worker that requests may join takes, per iteration, the
    prefill of those who join and one step of all who run. Both are one pass over the weights, so
    beside rows that run already a prefill is shorter by `base_s`.
    """

    prefill_s: Sequence[float]  # [max_batch_size], 0 where there is none
    step_s: Sequence[float]  # [max_batch_size], one iteration
    num_steps: int  # iterations of every request
    base_s: float = 0.0  # of every prefill: what a pass takes however little is in it

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: got {self.num_steps}; expected at least 1")
        if not self.step_s:
            raise ValueError("step_s: got nothing; expected seconds by batch size")
        if len(self.prefill_s) != len(self.step_s):
            raise ValueError(
                f"prefill_s: got {len(self.prefill_s)} sizes; expected those of step_s, "
                f"{len(self.step_s)}"
            )
        if not all(math.isfinite(second) and second >= 0 for second in self.prefill_s):
            raise ValueError(f"prefill_s: got {list(self.prefill_s)}; expected at least 0")
        if not 0 <= self.base_s <= min(self.prefill_s):
            raise ValueError(
                f"base_s: got {self.base_s}; expected 0 to the shortest prefill, "
                f"{min(self.prefill_s)}"
            )
        if not all(math.isfinite(second) and second > 0 for second in self.step_s):
            raise ValueError(f"step_s: got {list(self.step_s)}; expected above 0")

    @classmethod
    def affine(
        cls, base_s: float, item_s: float, max_batch_size: int, num_steps: int
    ) -> ServiceTable:
        """A batch of n takes `base_s` + n · `item_s`, in `num_steps` equal iterations."""
        sizes = range(1, max_batch_size + 1)
        steps = tuple((base_s + size * item_s) / num_steps for size in sizes)
        return cls((0.0,) * max_batch_size, steps, num_steps)

    @property
    def max_batch_size(self) -> int:
        """The largest batch in the table."""
        return len(self.step_s)

    @property
    def batch_s(self) -> tuple[float, ...]:
        """[max_batch_size]: seconds of a whole batch."""
        return tuple(
            prefill_s + self.num_steps * step_s
            for prefill_s, step_s in zip(self.prefill_s, self.step_s, strict=True)
        )

    @property
    def capacity_per_s(self) -> float:
        """Most requests per second, in batches of the size that is best for it."""
        return max(size / second for size, second in enumerate(self.batch_s, start=1))

    def joined_s(self, size: int) -> float:
        """What the prefill of `size` adds to an iteration of rows that run already."""
        return self.prefill_s[size - 1] - self.base_s

    def rate_per_s(self, within_s: float) -> float:
        """Most requests per second in batches that take no longer than `within_s`."""
        rates = [size / s for size, s in enumerate(self.batch_s, start=1) if s <= within_s]
        return max(rates, default=0.0)

    @property
    def joined_rate_per_s(self) -> float:
        """Nobody serves more requests per second by joining, whatever runs beside what.

        Split the time of every prefill and step equally among the requests in it.
        """
        joined_s = [self.joined_s(size) for size in range(1, self.max_batch_size + 1)]
        share_s = self._least_share(joined_s) + self.num_steps * self._least_share(self.step_s)
        return 1.0 / share_s

    @property
    def alone_s(self) -> float:
        """The least time from a request's start to its end."""
        return min(self.prefill_s) - self.base_s + self.num_steps * min(self.step_s)

    @staticmethod
    def _least_share(seconds: Sequence[float]) -> float:
        return min(second / size for size, second in enumerate(seconds, start=1))
