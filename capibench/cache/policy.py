"""The seam of eviction: a policy owns the order of keys; the tier owns values, bytes and disk.

A policy is pure and deterministic: time is an argument, and the same calls give the same victims.
It is a dataclass whose init fields are its parameters and whose state is `field(init=False)`, set
in `__post_init__`: the configured one is a prototype, and each tier decides with a `fresh` one of
its own. Staleness is the tiers' business, whatever the policy.

For an entry that finds no room a tier calls `admit` once, then `victim` and `on_remove` until the
entry fits, then `on_insert`. So `admit` is where a policy learns what comes in, and an `on_remove`
of the key that `victim` named last is an eviction, after which a policy may remember the key as a
ghost; any other `on_remove` is an expiry or an invalidation.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class EvictionPolicy(Protocol):
    """Laws, tested for every policy: the victim is resident; removed keys are forgotten;
    the same trace gives the same hits; resident bytes never exceed the tier's capacity; what is
    remembered is bounded by what the tier can hold."""

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        """`key` of `size` bytes, not resident until now, became so; recomputing it costs `cost_s`
        seconds; it is stale from `expires_s` on (absolute; infinity: never)."""

    def on_hit(self, key: bytes, now: float) -> None:
        """A resident `key` was read."""

    def on_remove(self, key: bytes) -> None:
        """A resident `key` left (evicted, expired or invalidated)."""

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        """Whether `key` may enter when something else would have to leave for it."""

    def victim(self, now: float) -> bytes:
        """The resident key to evict next; called only when at least one is resident."""


@runtime_checkable
class NeedsCapacity(Protocol):
    """A policy whose queues are shares of the tier is told the tier's size before anything else."""

    def open(self, capacity_bytes: int) -> None:
        """The tier that asks holds at most `capacity_bytes`."""


@runtime_checkable
class TakesHitsTogether(Protocol):
    """A policy for which the moment of a hit does not matter, only its place among others, may
    take many with one call: it costs a hit less."""

    def on_hits(self, keys: Sequence[bytes]) -> None:
        """The same as `on_hit` of each key, in this order."""


@runtime_checkable
class LendsTable(Protocol):
    """A policy that keeps all resident keys in one dict may lend it to a tier that has no other
    policy, which keeps there what it knows of each key. So a hit looks into one table instead of
    two, and in a large tier each look is several waits for memory.

    The tier puts a key in before `on_insert` and takes it out before `on_remove`; the policy moves
    keys, and leaves the values alone. It must go on from whatever order of keys it finds.
    """

    @property
    def table(self) -> OrderedDict[bytes, Any]:
        """All resident keys, in the policy's order."""


class PolicyMemory(NamedTuple):
    """Bytes of RAM that a policy takes beyond an order of the resident keys, at most; measured
    with tracemalloc."""

    per_entry: int  # for each resident
    per_sampled: int = 0  # more for each of those in a sample
    most_sampled: int = 0  # residents; with fewer all of them are


NO_MEMORY = PolicyMemory(0)


@runtime_checkable
class TakesMemory(Protocol):
    """A policy that holds more than an order of the resident keys, such as ghosts or miniatures."""

    @property
    def memory(self) -> PolicyMemory:
        """How much, at most."""


def memory_of(policy: EvictionPolicy) -> PolicyMemory:
    """What `policy` takes beyond an order of the keys."""
    return policy.memory if isinstance(policy, TakesMemory) else NO_MEMORY


def fresh(prototype: EvictionPolicy, capacity_bytes: int) -> EvictionPolicy:
    """An empty policy with the parameters of `prototype`, for a tier of `capacity_bytes`."""
    policy: EvictionPolicy = dataclasses.replace(prototype)  # type: ignore[type-var]
    if isinstance(policy, NeedsCapacity):
        policy.open(capacity_bytes)
    return policy
