"""Whether prefetching goes on: it must show in small, and go on showing, that it pays.

A prefetch pays when its key is used; it costs a read in the background, and it harms where what it
displaced is asked for. So prefetches are judged by their net precision: those that were used less
the look-ups that were harmed, of all that were settled. It pays when the lower end of Wilson's
interval (Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
the American Statistical Association 22, 1927) of that share is at least `least_precision`.

It begins, and begins anew after every rest, with a trial of a few prefetches. What is used is used
soon and what is not lies long, so that the first to be settled flatter: a trial is judged when its
verdict is certain, whatever becomes of those that are open. Once on, each block of settled ones is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

_MOST_REMEMBERED = 1000
Mode = Literal["trial", "on", "off"]


class Switched(NamedTuple):
    """From which access on, counted from 0, it was in which mode, and what led to it."""

    at_access: int
    mode: Mode
    used: int  # of those that were settled
    harmed: int  # look-ups of what prefetches had displaced
    settled: int  # on which it was judged; 0: nothing was


@dataclass
class SwitchRule:
    """When a block pays, and how large it is."""

    least_precision: float  # net of harm
    confidence: float  # one-sided, of each judgement
    trial_prefetches: int
    block_prefetches: int  # that are judged together once it is on
    rest_accesses: int  # from switching off to the next trial

    def __post_init__(self) -> None:
        for name in ("least_precision", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected between 0 and 1")
        for name in ("trial_prefetches", "block_prefetches", "rest_accesses"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")
        if not self.pays(self.trial_prefetches, self.trial_prefetches):
            raise ValueError(
                f"trial_prefetches: got {self.trial_prefetches}; expected more: even if all of "
                f"them are used, that does not show a precision of {self.least_precision}"
            )
        if self.block_prefetches < self.trial_prefetches:
            raise ValueError(
                f"block_prefetches: got {self.block_prefetches}; "
                f"expected at least trial_prefetches {self.trial_prefetches}"
            )

    def pays(self, good: int, total: int) -> bool:
        """Whether `good` of `total` (net of harm, so it may be below 0) shows that a prefetch
        pays."""
        if good <= 0:
            return False
        z = NormalDist().inv_cdf(self.confidence)
        share = good / total
        center = share + z * z / (2 * total)
        half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        return (center - half) / (1 + z * z / total) >= self.least_precision


class PrefetchSwitch:
    """Pure: told of every access, prefetch and outcome, it says whether one more may be made."""

    def __init__(self, rule: SwitchRule) -> None:
        self._rule = rule
        self._accesses = 0
        self._rest_end = 0
        self.trial = 0  # number of the trial under whose verdict prefetches are made
        self.mode: Mode = "trial"
        self._made = self._settled = self._used = self._harmed = 0
        self._switched: deque[Switched] = deque(maxlen=_MOST_REMEMBERED)
        self._begin_trial()

    @property
    def switched(self) -> tuple[Switched, ...]:
        """The latest thousand."""
        return tuple(self._switched)

    @property
    def may_prefetch(self) -> bool:
        """Whether one more may be made now."""
        return self.mode == "on" or (
            self.mode == "trial" and self._made < self._rule.trial_prefetches
        )

    def accessed(self) -> None:
        """One more access of any key."""
        self._accesses += 1
        if self.mode == "off" and self._accesses >= self._rest_end:
            self._begin_trial()

    def made(self) -> None:
        """One more prefetch."""
        self._made += 1

    def settled(self, trial: int, used: bool) -> None:
        """A prefetch that was made under `trial` was used, or left without."""
        if trial != self.trial or self.mode == "off":
            return
        self._settled += 1
        self._used += used
        self._judge()

    def harmed(self) -> None:
        """What a prefetch displaced was asked for."""
        if self.mode != "off":
            self._harmed += 1
            self._judge()

    def _judge(self) -> None:
        rule = self._rule
        size = rule.trial_prefetches if self.mode == "trial" else rule.block_prefetches
        least = self._used - self._harmed  # if all that are open are not used
        if not rule.pays(least + size - self._settled, size):
            self._rest_end = self._accesses + rule.rest_accesses
            self._switch("off")
        elif self.mode == "trial" and rule.pays(least, size):
            self._switch("on")
        elif self._settled >= size:  # on, and goes on
            self._settled = self._used = self._harmed = 0

    def _begin_trial(self) -> None:
        self.trial += 1
        self._switch("trial")

    def _switch(self, mode: Mode) -> None:
        judged = (self._used, self._harmed, self._settled)
        self._switched.append(Switched(self._accesses, mode, *judged))
        self.mode = mode
        self._made = self._settled = self._used = self._harmed = 0
