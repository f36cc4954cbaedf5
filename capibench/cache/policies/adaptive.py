"""Use the policy that would do best on the traffic of the moment, found by trying all in small.

Every expert runs as a miniature simulation (Waldspurger, Saemundsson, Ahmad, Park, "Cache modeling
and optimization using miniature simulations", USENIX ATC 2017, sections 3 and 5) on the keys of a
spatial sample: those whose hash falls in a fixed share of all, as in SHARDS (Waldspurger, Park,
Garthwaite, Ahmad, FAST 2015, section 3). An expert takes over when it leads the one in charge (in
hits, or in seconds saved) by more than chance gives in a turnover. A lead is counted from where it
began (Page's cumulative sums), so that nobody must first work off what it once was behind; and all
leads begin anew with each change, because a change costs: the new expert's own memory is short.

When something leads while the expert in charge hits much less than it used to, popularity itself
has changed. Then all that was learned is in the way: the first expert takes over with no memory but
the order of last use, and all miniatures start like that too.

Departures from the papers: the share of sampled keys halves whenever more than `sample_entries` of
them are resident (fixed-size SHARDS, with powers of two); miniatures choose between whole policies
and not only sizes or parameters; and the decision is sequential instead of periodic.

The expert in charge decides over a directory of its own, a simulated tier of the real one's size,
and what leaves the directory is what is evicted next (Subramanian, Smaragdakis, Loh, "Adaptive
caches: effective shaping of cache behavior to workloads", MICRO 2006, section 2.1). So a change
evicts nothing by itself: whatever the new directory does not hold goes first, as room is needed.
While every key is in the sample, the directory is the miniature, with all that it remembers; else
it is a new one, which is shown the residents, oldest first, with their reads, a few at each access.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

from capibench.cache.policy import EvictionPolicy, PolicyMemory, memory_of
from capibench.cache.policy_parts.forecast import Forecast
from capibench.cache.policy_parts.leads import Leads
from capibench.cache.policy_parts.simulated import SIMULATED_ENTRY_BYTES, SimulatedTier

_SHOWN_PER_ACCESS = 16  # residents that a new directory is shown with each access
_MAX_READS = 7  # that it sees of each of them
_BATCHES_PER_TURNOVER = 10  # decisions while as many accesses are sampled as are resident
_SMALLEST_BATCH = 8  # accesses
_RECENT_TURNOVERS = 0.15  # half-life of the share of hits that is called recent
_CHOICES_KEPT = 1000
_SHIFTED_BELOW = 0.8  # of the usual share: less than that recently, and something does better
_LEAST_DISAGREEMENT = 0.02  # share of the accesses of which two experts make different things
_RESIDENT_BYTES = 216  # what is known of each, measured with tracemalloc
_SAMPLED_BYTES = 200  # more in each miniature, while it is small and its tables have just grown
_SPREAD, _SHIFT = 0x165667B1, 24  # other bits of the hash than the frequency sketch uses

_Access = Callable[[bytes, int, float, float, float], bool]


def _refused(*_: object) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Chosen:
    """From this access on (counted from 0), at `now`, the named expert decides."""

    num_accesses: int
    now: float
    expert: str


class Resident:
    """What the policy knows of a resident key."""

    __slots__ = ("cost_s", "expires_s", "reads", "size")

    def __init__(self, size: int, cost_s: float, expires_s: float) -> None:
        self.size = size
        self.cost_s = cost_s
        self.expires_s = expires_s
        self.reads = 0


@dataclass
class Adaptive:
    """The sampled share of accesses costs one access per expert, the rest one of the directory."""

    experts: Mapping[str, EvictionPolicy]  # the first one begins
    score_by: Literal["hits", "seconds"]
    sample_entries: int  # at most as many sampled keys are resident in each miniature
    half_life_turnovers: float  # of what is usual; a turnover: as many accesses as residents
    standard_errors: float  # by which an expert must lead to take over
    margin: float  # share of the accesses (or seconds) by which being ahead counts for nothing

    _capacity: int = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _in_charge: int = field(init=False, repr=False, compare=False)
    _residents: OrderedDict[bytes, Resident] = field(init=False, repr=False, compare=False)
    _directory: SimulatedTier = field(init=False, repr=False, compare=False)
    _outside: OrderedDict[bytes, None] = field(init=False, repr=False, compare=False)  # of it
    _unshown: list[bytes] = field(init=False, repr=False, compare=False)  # to it, the next one last
    _sample_mask: int = field(init=False, repr=False, compare=False)
    _num_sampled: int = field(init=False, repr=False, compare=False)  # residents in the sample
    _miniatures: list[SimulatedTier] = field(init=False, repr=False, compare=False)
    _accesses: tuple[_Access, ...] = field(init=False, repr=False, compare=False)  # theirs, bound
    _leads: Leads = field(init=False, repr=False, compare=False)
    _recent_share: float = field(init=False, repr=False, compare=False)  # of hits, in charge
    _usual_share: float = field(init=False, repr=False, compare=False)
    _gains: list[float] = field(init=False, repr=False, compare=False)
    _at_stake: float = field(init=False, repr=False, compare=False)
    _batch: int = field(init=False, repr=False, compare=False)  # sampled accesses to a decision
    _num_observed: int = field(init=False, repr=False, compare=False)
    _num_accesses: int = field(init=False, repr=False, compare=False)
    _leaving: bytes | None = field(init=False, repr=False, compare=False)
    _chosen: list[Chosen] = field(init=False, repr=False, compare=False)
    num_changes: int = field(init=False, repr=False, compare=False)  # of the directory

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
        self._num_accesses = self.num_changes = 0
        self._leaving = None
        self._chosen = [Chosen(0, -math.inf, self._names[0])]
        self._sample_mask = 0
        self._start_miniatures(0.0)
        self._use(self._miniatures[0])

    @property
    def memory(self) -> PolicyMemory:
        """The directory, under whichever expert, and the miniatures."""
        simulated = [
            SIMULATED_ENTRY_BYTES + memory_of(expert).per_entry for expert in self.experts.values()
        ]
        sampled = sum(simulated) + _SAMPLED_BYTES * len(simulated)
        return PolicyMemory(_RESIDENT_BYTES + max(simulated), sampled, self.sample_entries)

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        """Which expert decided from when on, oldest first; the last thousand changes."""
        return tuple(self._chosen)

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        is_sampled = self._access(key, size, cost_s, now, expires_s)
        self._residents[key] = Resident(size, cost_s, expires_s)
        if key not in self._directory:
            self._outside[key] = None
        if is_sampled:
            self._num_sampled += 1
            if self._num_sampled > self.sample_entries:
                self._sample_mask = 2 * self._sample_mask + 1
                self._start_miniatures(now)

    def on_hit(self, key: bytes, now: float) -> None:
        resident = self._residents[key]
        self._residents.move_to_end(key)
        if resident.reads < _MAX_READS:
            resident.reads += 1
        self._access(key, resident.size, resident.cost_s, now, resident.expires_s)
        if key in self._outside and key in self._directory:
            del self._outside[key]

    def on_remove(self, key: bytes) -> None:
        del self._residents[key]
        self._outside.pop(key, None)
        if key != self._leaving and key in self._directory:
            self._directory.remove(key)
        if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask:
            self._num_sampled -= 1
            if key != self._leaving:  # it is gone for all, whatever they would have kept
                for miniature in self._miniatures:
                    if key in miniature:
                        miniature.remove(key)
        self._leaving = None

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        if key in self._directory or self._directory.make_room(key, size, cost_s, now):
            return True  # `on_insert` follows, and counts
        self._num_accesses += 1
        if not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask:
            accesses = list(self._accesses)
            if self._follows_miniature:  # it was asked just now
                accesses[self._in_charge] = _refused
            self._observe(accesses, key, size, cost_s, now, math.inf)
        return False

    def victim(self, now: float) -> bytes:
        while not self._outside:
            self._directory.remove(self._directory.policy.victim(now))
        self._leaving = next(iter(self._outside))
        return self._leaving

    def evict(self, key: bytes) -> None:
        """`on_remove(key)` follows because somebody else decided that this resident goes. Neither
        the directory nor a miniature forgets it, so that they go on as if they decided alone."""
        self._leaving = key

    def resident(self, key: bytes) -> Resident:
        """What is known of a resident key."""
        return self._residents[key]

    def oldest(self) -> bytes:
        """The resident that was not used for the longest time."""
        return next(iter(self._residents))

    def due(self, key: bytes) -> float:
        """When the expert in charge would evict a resident, on a scale that only a change of
        expert changes: minus infinity where it would not hold it at all."""
        if key in self._outside:
            return -math.inf
        policy = self._directory.policy
        return policy.due(key) if isinstance(policy, Forecast) else 0.0

    @property
    def _follows_miniature(self) -> bool:
        return self._directory is self._miniatures[self._in_charge]

    def _access(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> bool:
        """The miniatures and the directory see an access; whether its key is in the sample."""
        self._num_accesses += 1
        is_sampled = not crc32(key) * _SPREAD >> _SHIFT & self._sample_mask
        if is_sampled:  # first: a new directory sees it too
            self._observe(self._accesses, key, size, cost_s, now, expires_s)
        if not self._follows_miniature:
            self._directory.access(key, size, cost_s, now, expires_s)
            if self._unshown:
                self._show_some(now)
        return is_sampled

    def _start_miniatures(self, now: float) -> None:
        """Each expert in small, with the sampled residents in it."""
        capacity = max(self._capacity // (self._sample_mask + 1), 1)
        self._miniatures = [SimulatedTier(expert, capacity) for expert in self.experts.values()]
        self._accesses = tuple(miniature.access for miniature in self._miniatures)
        self._leads = Leads(len(self._names), self.half_life_turnovers)
        self._recent_share = self._usual_share = 0.0
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

    def _observe(
        self,
        accesses: Sequence[_Access],
        key: bytes,
        size: int,
        cost_s: float,
        now: float,
        expires_s: float,
    ) -> None:
        """Let every miniature see one access, and compare."""
        stake = cost_s if self.score_by == "seconds" else 1.0
        gains = self._gains
        for expert, access in enumerate(accesses):
            if access(key, size, cost_s, now, expires_s):
                gains[expert] += stake
        self._at_stake += stake
        self._num_observed += 1
        if self._num_observed >= self._batch:
            self._decide(now)

    def _decide(self, now: float) -> None:
        """The end of a batch."""
        turnovers = self._num_observed / max(self._num_sampled, 1)
        stake, num = self._at_stake, self._num_observed
        least = _LEAST_DISAGREEMENT * (stake / num) ** 2 * self._num_sampled
        self._leads.add(self._gains, self.margin * stake, least, turnovers)
        if stake:
            share = self._gains[self._in_charge] / stake
            kept = 0.5 ** (turnovers / _RECENT_TURNOVERS)
            self._recent_share += (1.0 - kept) * (share - self._recent_share)
            kept = 0.5 ** (turnovers / self.half_life_turnovers)
            self._usual_share += (1.0 - kept) * (share - self._usual_share)
        self._start_batch()
        if self._unshown:
            return  # one change at a time
        leader = self._leads.leader(self._in_charge, self.standard_errors)
        if leader is None:
            return
        if self._recent_share < _SHIFTED_BELOW * self._usual_share:
            self._begin_anew(now)
        else:
            self._change_to(leader, now)

    def _begin_anew(self, now: float) -> None:
        """All popularity has changed: whatever was learned of it is in the way."""
        for resident in self._residents.values():
            resident.reads = 0
        self._start_miniatures(now)
        self._change_to(0, now)

    def _start_batch(self) -> None:
        self._gains, self._at_stake = [0.0] * len(self._names), 0.0
        self._num_observed = 0
        self._batch = max(self._num_sampled // _BATCHES_PER_TURNOVER, _SMALLEST_BATCH)

    def _change_to(self, expert: int, now: float) -> None:
        self._in_charge = expert
        self._leads.start_anew(expert)
        if self._sample_mask:
            self._use(SimulatedTier(self.experts[self._names[expert]], self._capacity))
            self._unshown = list(reversed(self._residents))
        else:
            self._use(self._miniatures[expert])
        self._chosen.append(Chosen(self._num_accesses, now, self._names[expert]))
        del self._chosen[:-_CHOICES_KEPT]

    def _use(self, directory: SimulatedTier) -> None:
        """What it does not hold is evicted next, least recently used first."""
        self._directory, self._unshown = directory, []
        self.num_changes += 1
        for miniature in self._miniatures:
            miniature.on_leave = None
        directory.on_leave = self._left
        self._outside = OrderedDict.fromkeys(key for key in self._residents if key not in directory)

    def _left(self, key: bytes) -> None:
        if key in self._residents:
            self._outside[key] = None

    def _show_some(self, now: float) -> None:
        for _ in range(min(_SHOWN_PER_ACCESS, len(self._unshown))):
            key = self._unshown.pop()
            resident = self._residents.get(key)
            if resident is None or key in self._directory:
                continue
            for _ in range(1 + resident.reads):
                self._directory.access(key, resident.size, resident.cost_s, now, resident.expires_s)
            if key in self._directory:
                self._outside.pop(key, None)
