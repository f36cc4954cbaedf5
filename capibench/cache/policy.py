"""The seam of eviction: a policy owns the order of keys; the tier owns values, bytes and disk.

A policy is pure and deterministic: time is an argument, and the same calls give the same victims.
It is a dataclass whose init fields are its parameters and whose state is `field(init=False)`, set
in `__post_init__`: the configured one is a prototype, and each tier decides with a fresh one of
its own (`dataclasses.replace(prototype)`). Staleness is the tiers' business, whatever the policy.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class EvictionPolicy(Protocol):
    """Laws, tested for every policy: the victim is resident; removed keys are forgotten;
    the same trace gives the same hits; resident bytes never exceed the tier's capacity."""

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
