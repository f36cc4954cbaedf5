"""Evict what is forecast to be asked for least, and never hit much less than LRU would have.

A forecast is `policy_parts.forecast.Forecast`: two decayed rates of access per key, remembered
beyond eviction. There may be several, with different parameters. Two things guard against them.
The first is a judgement: `Adaptive` runs the forecasts and LRU in small on a sample of the keys,
and the residents are handed to the one that does best. It comes late where the workload changes
often. The second is a bound, `policy_parts.lru_bound.LruBound`: a shadow of LRU counts what
following the forecasts has cost and may yet cost, and where `budget_share` of the accesses does not
pay for it, the content drifts back to LRU's. So with entries of one size, on any stream and at any
moment, LRU has hit at most that share of the accesses more. The proof is there.

Who would go next is first who neither the expert in charge nor LRU would hold, then whom the expert
does not hold, if that is paid for, then who of those that LRU does not hold is due first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from capibench.cache.policies.adaptive import Adaptive, Chosen
from capibench.cache.policies.lru import Lru
from capibench.cache.policy import PolicyMemory
from capibench.cache.policy_parts.forecast import Forecast
from capibench.cache.policy_parts.lru_bound import BOUND_ENTRY_BYTES, LruBound
from capibench.cache.policy_parts.simulated import SimulatedTier

_GUARD = "lru"


@dataclass
class Predictive:
    """All experts see the sampled accesses; the one in charge and LRU see all."""

    forecasts: Mapping[str, Forecast]  # the first one begins
    guard_sample_entries: int  # at most as many sampled keys are resident in each miniature
    guard_half_life_turnovers: float  # of what is usual; a turnover: as many accesses as entries
    guard_standard_errors: float  # by which one must lead to take over
    budget_share: float  # of all accesses (or seconds), that LRU may hit (or save) more

    _by_seconds: bool = field(init=False, repr=False, compare=False)
    _guarded: Adaptive = field(init=False, repr=False, compare=False)
    _bound: LruBound = field(init=False, repr=False, compare=False)
    _num_changes: int = field(init=False, repr=False, compare=False)  # that the order is as of
    _leaving: bytes | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.forecasts:
            raise ValueError("forecasts: got none; expected at least one")
        if _GUARD in self.forecasts:
            raise ValueError(f"forecasts: got one named {_GUARD}; expected another name")
        for name, forecast in self.forecasts.items():
            if not isinstance(forecast, Forecast):
                raise ValueError(f"forecasts.{name}: got {forecast!r}; expected a Forecast")
        if not 0 <= self.budget_share <= 1:
            raise ValueError(f"budget_share: got {self.budget_share}; expected 0 to 1")
        first, *others = self.forecasts.values()
        if any(other.score_by != first.score_by for other in others):
            raise ValueError("forecasts: got different score_by; expected the same in all")
        try:
            self._guarded = Adaptive(
                experts={**self.forecasts, _GUARD: Lru()},
                score_by=first.score_by,
                sample_entries=self.guard_sample_entries,
                half_life_turnovers=self.guard_half_life_turnovers,
                standard_errors=self.guard_standard_errors,
                margin=0.0,
            )
        except ValueError as error:  # it names its own field
            raise ValueError(f"guard_{error}") from error
        self._by_seconds = first.score_by == "seconds"
        self.open(0)

    def open(self, capacity_bytes: int) -> None:
        self._guarded.open(capacity_bytes)
        self._bound = LruBound(
            SimulatedTier(Lru(), capacity_bytes), self.budget_share, self._guarded.due
        )
        self._num_changes = 0
        self._leaving = None

    @property
    def memory(self) -> PolicyMemory:
        """What judges the forecasts, and the bound."""
        guarded = self._guarded.memory
        return guarded._replace(per_entry=guarded.per_entry + BOUND_ENTRY_BYTES)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Which forecast, or "lru", decided from when on."""
        return self._guarded.chosen

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._guarded.on_insert(key, size, cost_s, now, expires_s)
        self._bound.stored(key, size, self._worth(cost_s), cost_s, now, expires_s)

    def on_hit(self, key: bytes, now: float) -> None:
        self._guarded.on_hit(key, now)
        known = self._guarded.resident(key)
        worth = self._worth(known.cost_s)
        self._bound.hit(key, known.size, worth, known.cost_s, now, known.expires_s)

    def on_remove(self, key: bytes) -> None:
        if key == self._leaving:
            self._bound.evicted(key, self._worth(self._guarded.resident(key).cost_s))
        else:
            self._bound.removed(key)
        self._leaving = None
        self._guarded.on_remove(key)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return self._guarded.admit(key, size, cost_s, now)

    def victim(self, now: float) -> bytes:
        guarded, bound = self._guarded, self._bound
        if guarded.num_changes != self._num_changes:
            self._num_changes = guarded.num_changes
            bound.rank_anew()
        key = bound.first_beyond()
        if key is None or guarded.due(key) > -math.inf:  # what nobody would keep goes first
            wish = guarded.victim(now)
            if bound.is_paid(wish, self._worth(guarded.resident(wish).cost_s)):
                key = wish
            elif key is None:
                key = guarded.oldest()
        guarded.evict(key)
        self._leaving = key
        return key

    def _worth(self, cost_s: float) -> float:
        return cost_s if self._by_seconds else 1.0
