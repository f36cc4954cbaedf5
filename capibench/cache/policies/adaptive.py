"""Use the policy that would do best on the traffic of the moment, found by trying all in small.

Every expert runs as a miniature simulation (Waldspurger, Saemundsson, Ahmad, Park, "Cache modeling
and optimization using miniature simulations", USENIX ATC 2017, sections 3 and 5) on the keys of a
spatial sample: those whose hash falls in a fixed share of all, as in SHARDS (Waldspurger, Park,
Garthwaite, Ahmad, FAST 2015, section 3). An expert takes over when its lead over the one in charge
(in hits, or in seconds saved) is larger than chance explains: the paired difference, taken over
batches of accesses, must exceed a number of its standard errors. It is kept twice: over a long
time, for small differences that last, and over a short one with a stricter test, for a shift of
popularity; after such a shift the long record counts for nothing and begins anew.

Departures from the papers: the share of sampled keys halves whenever more than `sample_entries` of
them are resident (fixed-size SHARDS, with powers of two); miniatures choose between whole policies
and not only sizes or parameters; and the decision is sequential instead of periodic. A deficit is
limited to its own noise, so that an expert need not first work off what it once was behind.

When the expert changes, every resident stays: the new one receives them oldest first, with their
reads since they came, a few at each access; meanwhile the old one names the victims.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

from capibench.cache.policy import EvictionPolicy, fresh
from capibench.cache.simulated import SimulatedTier

_MOVED_PER_ACCESS = 4  # residents that a new expert receives with each access after a change
_MAX_READS = 3  # that it is told about, for each of them
_BATCHES_PER_TURNOVER = 16  # decisions while as many accesses are sampled as are resident
_SMALLEST_BATCH = 8  # accesses
_CHOICES_KEPT = 1000
_SHIFT_HALF_LIFE_TURNOVERS = 1.0  # of the short record
_SHIFT_STANDARD_ERRORS = 2.5  # and how sure it must be
_SPREAD, _SHIFT = 0x165667B1, 24  # other bits of the hash than the frequency sketch uses


@dataclass(frozen=True, slots=True)
class Chosen:
    """From this access on (counted from 0), at `now`, the named expert decides."""

    num_accesses: int
    now: float
    expert: str


class _Record:
    """How far each expert leads each other one, with variances, both decaying.

    Gains come in batches of accesses, and the variance is that of batches: hits come in bursts, so
    that single ones are no independent evidence.
    """

    __slots__ = ("at_stake", "half_life_turnovers", "leads", "variances")

    def __init__(self, num_experts: int, half_life_turnovers: float) -> None:
        self.half_life_turnovers = half_life_turnovers
        self.leads = [[0.0] * num_experts for _ in range(num_experts)]  # of whom, over whom
        self.variances = [[0.0] * num_experts for _ in range(num_experts)]
        self.at_stake = 0.0

    def add(
        self, gains: list[float], at_stake: float, turnovers: float, standard_errors: float
    ) -> None:
        """One batch: what each expert gained of what was at stake."""
        kept = 0.5 ** (turnovers / self.half_life_turnovers)
        self.at_stake = kept * self.at_stake + at_stake
        for leads, variances, gain in zip(self.leads, self.variances, gains, strict=True):
            for other, other_gain in enumerate(gains):
                variance = kept * variances[other] + (gain - other_gain) ** 2
                variances[other] = variance
                least = -standard_errors * math.sqrt(variance)
                leads[other] = max(kept * leads[other] + gain - other_gain, least)

    def leader(self, in_charge: int, standard_errors: float, margin: float) -> int | None:
        """Who leads the one in charge by more than so many standard errors and the margin, and by
        most."""
        best, best_lead = None, 0.0
        for expert, leads in enumerate(self.leads):
            noise = standard_errors * math.sqrt(self.variances[expert][in_charge])
            if leads[in_charge] > max(noise + margin * self.at_stake, best_lead):
                best, best_lead = expert, leads[in_charge]
        return best


class _Resident:
    __slots__ = ("cost_s", "expires_s", "reads", "size")

    def __init__(self, size: int, cost_s: float, expires_s: float) -> None:
        self.size = size
        self.cost_s = cost_s
        self.expires_s = expires_s
        self.reads = 0


@dataclass
class Adaptive:
    """The sampled share of accesses costs one access per expert, the rest one of the expert in
    charge."""

    experts: Mapping[str, EvictionPolicy]  # the first one begins
    score_by: Literal["hits", "seconds"]
    sample_entries: int  # at most as many sampled keys are resident in each miniature
    half_life_turnovers: float  # of the long record; a turnover: as many accesses as residents
    standard_errors: float  # by which an expert must lead to take over
    margin: float  # and by which share of the accesses (or seconds)

    _capacity: int = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _in_charge: int = field(init=False, repr=False, compare=False)
    _active: EvictionPolicy = field(init=False, repr=False, compare=False)
    _residents: OrderedDict[bytes, _Resident] = field(init=False, repr=False, compare=False)
    _former: EvictionPolicy | None = field(init=False, repr=False, compare=False)
    _unmoved: OrderedDict[bytes, None] = field(init=False, repr=False, compare=False)
    _sample_mask: int = field(init=False, repr=False, compare=False)
    _num_sampled: int = field(init=False, repr=False, compare=False)  # residents in the sample
    _miniatures: list[SimulatedTier] = field(init=False, repr=False, compare=False)
    _long: _Record = field(init=False, repr=False, compare=False)
    _short: _Record = field(init=False, repr=False, compare=False)
    _gains: list[float] = field(init=False, repr=False, compare=False)
    _at_stake: float = field(init=False, repr=False, compare=False)
    _batch: int = field(init=False, repr=False, compare=False)  # sampled accesses to a decision
    _num_observed: int = field(init=False, repr=False, compare=False)
    _num_accesses: int = field(init=False, repr=False, compare=False)
    _leaving: bytes | None = field(init=False, repr=False, compare=False)
    _chosen: list[Chosen] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.experts:
            raise ValueError("experts: got none; expected at least one policy")
        for name, expert in self.experts.items():
            if not isinstance(expert, EvictionPolicy):
                raise ValueError(f"experts.{name}: got {expert!r}; expected an eviction policy")
        if self.sample_entries < 16:
            raise ValueError(f"sample_entries: got {self.sample_entries}; expected at least 16")
        if not 0 < self.half_life_turnovers < math.inf:
            raise ValueError(
                f"half_life_turnovers: got {self.half_life_turnovers}; expected above 0"
            )
        for name in ("standard_errors", "margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 0")
        self._names = tuple(self.experts)
        self.open(0)

    def open(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._residents = OrderedDict()  # least recently used first
        self._in_charge = 0
        self._active = fresh(self.experts[self._names[0]], capacity_bytes)
        self._former, self._unmoved = None, OrderedDict()
        self._num_accesses = 0
        self._leaving = None
        self._chosen = [Chosen(0, -math.inf, self._names[0])]
        self._sample_mask = 0
        self._start_miniatures(0.0)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Which expert decided from when on, oldest first; the last thousand changes."""
        return tuple(self._chosen)

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self._num_accesses += 1
        is_sampled = not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask
        if is_sampled:  # first: a new expert receives who is resident until now
            self._observe(key, size, cost_s, now, expires_s)
        self._residents[key] = _Resident(size, cost_s, expires_s)
        self._active.on_insert(key, size, cost_s, now, expires_s)
        if self._former is not None:
            self._move_some(now)
        if is_sampled:
            self._num_sampled += 1
            if self._num_sampled > self.sample_entries:
                self._sample_mask = 2 * self._sample_mask + 1
                self._start_miniatures(now)

    def on_hit(self, key: bytes, now: float) -> None:
        self._num_accesses += 1
        resident = self._residents[key]
        self._residents.move_to_end(key)
        if resident.reads < _MAX_READS:
            resident.reads += 1
        if self._former is None:
            self._active.on_hit(key, now)
        else:
            if key in self._unmoved:
                self._move(key, now)
            else:
                self._active.on_hit(key, now)
            self._move_some(now)
        if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask:
            self._observe(key, resident.size, resident.cost_s, now, resident.expires_s)

    def on_remove(self, key: bytes) -> None:
        del self._residents[key]
        if key in self._unmoved:
            assert self._former is not None
            del self._unmoved[key]
            self._former.on_remove(key)
            if not self._unmoved:
                self._former = None
        else:
            self._active.on_remove(key)
        if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask:
            self._num_sampled -= 1
            if key != self._leaving:  # it is gone for all, whatever they would have kept
                for miniature in self._miniatures:
                    if key in miniature:
                        miniature.remove(key)
        self._leaving = None

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        if self._active.admit(key, size, cost_s, now):
            return True  # `on_insert` follows, and counts
        self._num_accesses += 1
        if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask:
            self._observe(key, size, cost_s, now, math.inf)
        return False

    def victim(self, now: float) -> bytes:
        self._leaving = (self._active if self._former is None else self._former).victim(now)
        return self._leaving

    def _start_miniatures(self, now: float) -> None:
        """Each expert in small, with the sampled residents in it."""
        capacity = max(self._capacity // (self._sample_mask + 1), 1)
        self._miniatures = [SimulatedTier(expert, capacity) for expert in self.experts.values()]
        self._long = _Record(len(self._names), self.half_life_turnovers)
        self._short = _Record(len(self._names), _SHIFT_HALF_LIFE_TURNOVERS)
        sampled = [
            (key, resident)
            for key, resident in self._residents.items()
            if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask
        ]
        self._num_sampled = len(sampled)
        self._start_batch()
        for miniature in self._miniatures:
            for key, resident in sampled:
                for _ in range(1 + resident.reads):
                    miniature.access(key, resident.size, resident.cost_s, now, resident.expires_s)

    def _observe(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        """Let every miniature see one access, and compare."""
        stake = cost_s if self.score_by == "seconds" else 1.0
        for expert, miniature in enumerate(self._miniatures):
            if miniature.access(key, size, cost_s, now, expires_s):
                self._gains[expert] += stake
        self._at_stake += stake
        self._num_observed += 1
        if self._num_observed >= self._batch:
            self._decide(now)

    def _decide(self, now: float) -> None:
        """The end of a batch."""
        turnovers = self._num_observed / max(self._num_sampled, 1)
        self._long.add(self._gains, self._at_stake, turnovers, self.standard_errors)
        self._short.add(self._gains, self._at_stake, turnovers, _SHIFT_STANDARD_ERRORS)
        self._start_batch()
        if self._former is not None:
            return  # one change at a time
        shifted_to = self._short.leader(self._in_charge, _SHIFT_STANDARD_ERRORS, self.margin)
        leader = self._long.leader(self._in_charge, self.standard_errors, self.margin)
        if shifted_to is not None:
            self._long = _Record(len(self._names), self.half_life_turnovers)
            self._change_to(shifted_to, now)
        elif leader is not None:
            self._change_to(leader, now)

    def _start_batch(self) -> None:
        self._gains, self._at_stake = [0.0] * len(self._names), 0.0
        self._num_observed = 0
        self._batch = max(self._num_sampled // _BATCHES_PER_TURNOVER, _SMALLEST_BATCH)

    def _change_to(self, expert: int, now: float) -> None:
        self._in_charge = expert
        self._former = self._active
        self._active = fresh(self.experts[self._names[expert]], self._capacity)
        self._unmoved = OrderedDict.fromkeys(self._residents)
        if not self._unmoved:
            self._former = None
        self._chosen.append(Chosen(self._num_accesses, now, self._names[expert]))
        del self._chosen[:-_CHOICES_KEPT]

    def _move_some(self, now: float) -> None:
        for _ in range(min(_MOVED_PER_ACCESS, len(self._unmoved))):
            self._move(next(iter(self._unmoved)), now)

    def _move(self, key: bytes, now: float) -> None:
        assert self._former is not None
        del self._unmoved[key]
        self._former.on_remove(key)
        resident = self._residents[key]
        self._active.on_insert(key, resident.size, resident.cost_s, now, resident.expires_s)
        for _ in range(resident.reads):
            self._active.on_hit(key, now)
        if not self._unmoved:
            self._former = None
