"""Every policy over the same stream of keys, in every size, beside what no policy exceeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import numpy as np

from capibench.cache.policies.adaptive import Chosen
from capibench.cache.policies.lru import Lru
from capibench.cache.policy import EvictionPolicy
from capibench.cache.policy_parts.simulated import SimulatedTier
from capibench.cache.replay.bounds import (
    Flags,
    belady_hits,
    belady_is_best,
    infinite_hits,
    most_hits,
    upper_bound,
)
from capibench.cache.replay.trace import Floats, KeyTrace, Whole

_CHUNK = 20_000  # accesses between two steps of the progress bar


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy hit in one size; what does not apply, or was not told, is None."""

    policy: str
    capacity_bytes: int
    lookups: int  # counted ones, after the warm-up
    hits: int
    hit_ratio: float
    byte_hit_ratio: float | None
    seconds_saved: float | None  # what recomputing the hits would have taken
    saved_share: float | None  # of what everything would have taken without a cache
    below_bound: float | None  # hit ratio that is missing to what no policy exceeds
    requests_per_s: float | None  # None for what is computed from the future
    chosen: tuple[Chosen, ...] | None  # what `adaptive` and `predictive` decided, and when


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What knows the future, in one size; None where hits decide which look-ups happen."""

    capacity_bytes: int
    belady: Outcome | None
    hit_ratio: float | None  # no policy has more
    is_reached: bool  # by Belady; if not, it may be more than any cache can have
    saved_share: float | None  # no policy has more, and perhaps none as much


@dataclass(frozen=True, slots=True)
class Replayed:
    """All outcomes of a replay; `infinite` is the cache that never evicts."""

    trace: str
    num_accesses: int
    num_keys: int
    working_set_bytes: int
    warmup_accesses: int
    left_out: str | None
    infinite: Outcome
    ceilings: tuple[Ceiling, ...]
    outcomes: tuple[Outcome, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def replay(
    trace: KeyTrace,
    policies: Mapping[str, EvictionPolicy],
    capacities_bytes: Sequence[int],
    warmup_accesses: int,
    on_progress: Callable[[int], None],
) -> Replayed:
    """Run every policy (a prototype) over `trace` in every capacity.

    Args:
        warmup_accesses: so many accesses fill the caches and are not counted.
        on_progress: called with the number of accesses that were replayed since its last call.

    Raises:
        ValueError: a capacity below one byte, or a warm-up that leaves nothing to count.
    """
    for capacity_bytes in capacities_bytes:
        if capacity_bytes < 1:
            raise ValueError(f"sizes: got {capacity_bytes} bytes; expected at least 1")
    if not 0 <= warmup_accesses < len(trace):
        raise ValueError(
            f"warmup: got {warmup_accesses}; expected at least 0, and fewer than the {len(trace)} "
            "accesses"
        )
    counted = _Counted(trace, warmup_accesses)
    feed = _Feed(trace)
    infinite = feed.infinite(counted)
    ceilings = tuple(_ceiling(trace, capacity, counted) for capacity in capacities_bytes)
    outcomes = tuple(
        feed.replay(name, policy, ceiling, counted, on_progress)
        for name, policy in policies.items()
        for ceiling in ceilings
    )
    return Replayed(
        trace=trace.name,
        num_accesses=len(trace),
        num_keys=trace.num_keys,
        working_set_bytes=trace.working_set_bytes,
        warmup_accesses=warmup_accesses,
        left_out=trace.left_out,
        infinite=infinite,
        ceilings=ceilings,
        outcomes=outcomes,
    )


class _Counted:
    """From flags per access to the figures of an outcome."""

    def __init__(self, trace: KeyTrace, warmup_accesses: int) -> None:
        self.since = warmup_accesses
        self._sizes = trace.sizes
        self._costs_s = trace.costs_s
        self._seconds = 0.0
        if trace.costs_s is not None:
            alone = np.full(len(trace), True) if trace.skips is None else _not_inside(trace.skips)
            self._seconds = float(trace.costs_s[warmup_accesses:][alone[warmup_accesses:]].sum())

    def outcome(
        self,
        policy: str,
        capacity_bytes: int,
        hits: Flags,
        *,
        happened: Flags | None = None,
        bound: float | None = None,
        requests_per_s: float | None = None,
        chosen: tuple[Chosen, ...] | None = None,
    ) -> Outcome:
        hits = hits[self.since :]
        happened = np.full(len(hits), True) if happened is None else happened[self.since :]
        num_lookups, num_hits = int(happened.sum()), int(hits.sum())
        if not num_lookups:
            raise ValueError(f"warmup: got {self.since}; expected look-ups after it")
        hit_ratio = num_hits / num_lookups
        byte_hit_ratio = seconds_saved = None
        if self._sizes is not None:
            sizes = self._sizes[self.since :]
            byte_hit_ratio = float(sizes[hits].sum() / sizes[happened].sum())
        if self._costs_s is not None:
            seconds_saved = float(self._costs_s[self.since :][hits].sum())
        return Outcome(
            policy=policy,
            capacity_bytes=capacity_bytes,
            lookups=num_lookups,
            hits=num_hits,
            hit_ratio=hit_ratio,
            byte_hit_ratio=byte_hit_ratio,
            seconds_saved=seconds_saved,
            saved_share=self.share_of_all(seconds_saved),
            below_bound=None if bound is None else bound - hit_ratio,
            requests_per_s=requests_per_s,
            chosen=chosen,
        )

    def share_of_all(self, seconds: float | None) -> float | None:
        """Of the seconds that everything takes without a cache."""
        return None if seconds is None or not self._seconds else seconds / self._seconds


def _ceiling(trace: KeyTrace, capacity_bytes: int, counted: _Counted) -> Ceiling:
    if trace.skips is not None:
        return Ceiling(capacity_bytes, None, None, is_reached=False, saved_share=None)
    flags = np.arange(len(trace)) >= counted.since
    belady = counted.outcome("belady", capacity_bytes, belady_hits(trace, capacity_bytes, flags))
    saved_share = None
    if trace.costs_s is not None:
        most_s = upper_bound(trace, capacity_bytes, trace.costs_s, flags)
        saved_share = counted.share_of_all(most_s)
    return Ceiling(
        capacity_bytes,
        belady,
        hit_ratio=most_hits(trace, capacity_bytes, flags) / belady.lookups,
        is_reached=belady_is_best(trace),
        saved_share=saved_share,
    )


class _Feed:
    """The trace as plain Python objects, made once for all policies."""

    def __init__(self, trace: KeyTrace) -> None:
        self._trace = trace
        keys = trace.keys
        self._keys = [keys[key] for key in trace.ids.tolist()]
        self._sizes = None if trace.sizes is None else trace.sizes.tolist()
        self._costs_s = None if trace.costs_s is None else trace.costs_s.tolist()
        self._times_s = trace.times_s.tolist()
        expires_s: Floats | None = None
        if trace.ttls_s is not None:
            expires_s = trace.times_s + trace.ttls_s
        self._expires_s = None if expires_s is None else expires_s.tolist()

    def infinite(self, counted: _Counted) -> Outcome:
        """What a cache hits that never evicts."""
        trace = self._trace
        if trace.skips is None:
            return counted.outcome("infinite", trace.working_set_bytes, infinite_hits(trace))
        most = int(trace.sizes.sum()) if trace.sizes is not None else len(trace)
        happened, hits = self._with_skips(SimulatedTier(Lru(), max(most, 1)), lambda _: None)
        return counted.outcome("infinite", trace.working_set_bytes, hits, happened=happened)

    def replay(
        self,
        name: str,
        policy: EvictionPolicy,
        ceiling: Ceiling,
        counted: _Counted,
        on_progress: Callable[[int], None],
    ) -> Outcome:
        """One policy in one size."""
        tier = SimulatedTier(policy, ceiling.capacity_bytes)
        happened = None
        begin_s = time.perf_counter()
        if self._trace.skips is None:
            hits = self._plain(tier, on_progress)
        else:
            happened, hits = self._with_skips(tier, on_progress)
        took_s = time.perf_counter() - begin_s
        return counted.outcome(
            name,
            ceiling.capacity_bytes,
            hits,
            happened=happened,
            bound=ceiling.hit_ratio,
            requests_per_s=len(self._keys) / took_s,
            chosen=getattr(tier.policy, "chosen", None),
        )

    def _plain(self, tier: SimulatedTier, on_progress: Callable[[int], None]) -> Flags:
        hits = bytearray()
        for begin in range(0, len(self._keys), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            keys = self._keys[chunk]
            hits += bytes(
                map(
                    tier.access,
                    keys,
                    repeat(1) if self._sizes is None else self._sizes[chunk],
                    repeat(1.0) if self._costs_s is None else self._costs_s[chunk],
                    self._times_s[chunk],
                    repeat(math.inf) if self._expires_s is None else self._expires_s[chunk],
                )
            )
            on_progress(len(keys))
        return np.frombuffer(hits, dtype=np.bool_)

    def _with_skips(
        self, tier: SimulatedTier, on_progress: Callable[[int], None]
    ) -> tuple[Flags, Flags]:
        """Which accesses happened, and which of them hit."""
        num = len(self._keys)
        assert self._trace.skips is not None
        skips = self._trace.skips.tolist()
        sizes = self._sizes or [1] * num
        costs_s = self._costs_s or [1.0] * num
        expires_s = self._expires_s or [math.inf] * num
        happened, hits = np.zeros(num, dtype=np.bool_), np.zeros(num, dtype=np.bool_)
        place = reported = 0
        while place < num:
            happened[place] = True
            if tier.access(
                self._keys[place],
                sizes[place],
                costs_s[place],
                self._times_s[place],
                expires_s[place],
            ):
                hits[place] = True
                place += skips[place]
            place += 1
            if place - reported >= _CHUNK:
                on_progress(place - reported)
                reported = place
        on_progress(num - reported)
        return happened, hits


def _not_inside(skips: Whole) -> Flags:
    """Which accesses happen whatever the others do."""
    alone = np.full(len(skips), True)
    free_from = 0
    for place, skipped in enumerate(skips.tolist()):
        if place < free_from:
            alone[place] = False
        else:
            free_from = place + skipped + 1
    return alone
