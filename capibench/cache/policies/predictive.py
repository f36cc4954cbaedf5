"""Evict what is forecast to be asked for least, and fall back to LRU where forecasts are no good.

A forecast is `capibench.cache.forecast.Forecast`: two decayed rates of access per key, remembered
beyond eviction. There may be several, with different parameters. The guard is `Adaptive` with the
forecasts and LRU as experts: all run in small on a sample of the keys, and the residents are handed
to the one that does best. So a workload that no forecast understands costs what finding out costs.

It prefetches nothing: a policy knows keys, and what would compute their values lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from capibench.cache.forecast import Forecast
from capibench.cache.policies.adaptive import Adaptive, Chosen
from capibench.cache.policies.lru import Lru

_GUARD = "lru"


@dataclass
class Predictive:
    """The cost of all experts on the sampled accesses, of the one in charge on the rest."""

    forecasts: Mapping[str, Forecast]  # the first one begins
    guard_sample_entries: int  # at most as many sampled keys are resident in each miniature
    guard_half_life_turnovers: float  # of what is usual; a turnover: as many accesses as entries
    guard_standard_errors: float  # by which one must lead to take over

    _guarded: Adaptive = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.forecasts:
            raise ValueError("forecasts: got none; expected at least one")
        if _GUARD in self.forecasts:
            raise ValueError(f"forecasts: got one named {_GUARD}; expected another name")
        for name, forecast in self.forecasts.items():
            if not isinstance(forecast, Forecast):
                raise ValueError(f"forecasts.{name}: got {forecast!r}; expected a Forecast")
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

    def open(self, capacity_bytes: int) -> None:
        self._guarded.open(capacity_bytes)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Which forecast, or "lru", decided from when on."""
        return self._guarded.chosen

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._guarded.on_insert(key, size, cost_s, now, expires_s)

    def on_hit(self, key: bytes, now: float) -> None:
        self._guarded.on_hit(key, now)

    def on_remove(self, key: bytes) -> None:
        self._guarded.on_remove(key)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return self._guarded.admit(key, size, cost_s, now)

    def victim(self, now: float) -> bytes:
        return self._guarded.victim(now)
