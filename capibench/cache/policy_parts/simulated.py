"""A tier without values: what a policy would hit, at the speed of its own bookkeeping.

The replay of a trace and the miniature simulations inside `adaptive` run on it. It does what the
real tiers do (`Residents`), for one key at a time: look up, and on a miss make room and store.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from capibench.cache.policy import EvictionPolicy, fresh
from capibench.cache.tiers.expiry import ExpiryOrder

# Beside what the policy takes beyond its order: the tables, the expiry heap, and keys that only
# it still knows. Measured with tracemalloc inside `Adaptive`.
SIMULATED_ENTRY_BYTES = 510


class SimulatedTier:
    """At most `capacity_bytes` of entries, held by a fresh copy of `policy`."""

    __slots__ = (
        "_admit",
        "_expiry",
        "_on_hit",
        "_on_insert",
        "_on_remove",
        "_residents",
        "_victim",
        "capacity_bytes",
        "num_bytes",
        "on_leave",
        "policy",
    )

    def __init__(self, policy: EvictionPolicy, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.num_bytes = 0
        self.policy = fresh(policy, capacity_bytes)
        self._on_hit = self.policy.on_hit
        self._on_insert = self.policy.on_insert
        self._on_remove = self.policy.on_remove
        self._admit = self.policy.admit
        self._victim = self.policy.victim
        self.on_leave: Callable[[bytes], None] | None = None  # told of every key that left
        self._residents: dict[bytes, tuple[int, float]] = {}  # key → size, expiry
        self._expiry = ExpiryOrder()

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, key: bytes) -> bool:
        return key in self._residents

    def access(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> bool:
        """Whether `key` was resident and fresh; if not, it is stored (when it may enter)."""
        resident = self._residents.get(key)
        if resident is not None:
            if now < resident[1]:
                self._on_hit(key, now)
                return True
            self.remove(key)
        if self.num_bytes + size > self.capacity_bytes and not self.make_room(
            key, size, cost_s, now
        ):
            return False
        self._residents[key] = (size, expires_s)
        self.num_bytes += size
        if expires_s < math.inf:
            self._expiry.add(key, expires_s)
        self._on_insert(key, size, cost_s, now, expires_s)
        return False

    def make_room(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        """Whether `key`, which is not resident, may enter; there is room for it then."""
        room = self.capacity_bytes - size
        if room < 0:
            return False
        if self.num_bytes > room:
            if self._expiry:
                self._drop_stale(now)
            if self.num_bytes > room:
                if not self._admit(key, size, cost_s, now):
                    return False
                while self.num_bytes > room:
                    self.remove(self._victim(now))
        return True

    def remove(self, key: bytes) -> None:
        """Forget a resident `key`."""
        size, expires_s = self._residents.pop(key)
        self.num_bytes -= size
        if expires_s < math.inf:
            self._expiry.discard(key)
        self._on_remove(key)
        if self.on_leave is not None:
            self.on_leave(key)

    def _drop_stale(self, now: float) -> None:
        while (first := self._expiry.first()) is not None and first[1] <= now:
            self.remove(first[0])
