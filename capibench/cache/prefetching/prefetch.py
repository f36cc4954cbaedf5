"""Prefetch as a choice of the configuration: what lies on the SSD is brought back into RAM before
it is asked for, under any policy. Off by default: most streams have no sequences to learn from."""

from __future__ import annotations

from dataclasses import dataclass

from capibench.cache.prefetching.prefetch_switch import PrefetchSwitch, SwitchRule
from capibench.cache.prefetching.prefetcher import Prefetcher
from capibench.cache.prefetching.successors import Successors


@dataclass
class PrefetchChoice:
    """What `cache/prefetch` may be."""


@dataclass
class NoPrefetch(PrefetchChoice):
    """`cache/prefetch=none`: an entry comes back into RAM when it is asked for."""


@dataclass
class Followers(PrefetchChoice):
    """`cache/prefetch=followers`: what followed a key before is brought when it is asked for."""

    window: int  # accesses of its type after an access that follow it
    accesses_kept: int  # of a key, whose followers are remembered
    least_repeats: int  # of those accesses, that a follower must have followed (or all)
    keys_kept: int  # whose followers are remembered, those asked for last
    most_per_turn: int  # brought at a time, so that nothing else waits long
    rule: SwitchRule

    def __post_init__(self) -> None:
        for name in ("window", "accesses_kept", "least_repeats", "keys_kept", "most_per_turn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")
        if self.least_repeats > self.accesses_kept:
            raise ValueError(
                f"least_repeats: got {self.least_repeats}; "
                f"expected at most accesses_kept {self.accesses_kept}"
            )
        if not isinstance(self.rule, SwitchRule):
            raise ValueError(f"rule: got {self.rule!r}; expected a SwitchRule")

    def prefetcher(self) -> Prefetcher:
        """One that knows nothing yet."""
        forecast = Successors(self.window, self.accesses_kept, self.least_repeats, self.keys_kept)
        return Prefetcher(forecast, 4 * self.most_per_turn, PrefetchSwitch(self.rule))
