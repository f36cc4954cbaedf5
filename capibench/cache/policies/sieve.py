"""Keep what was read since the hand last passed: as cheap as FIFO on a hit, and better than LRU on
most web traces.

SIEVE (Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU", NSDI 2024, section 3,
algorithm 1): one queue in order of insertion, one bit per entry, and a hand that moves from the
tail (oldest) to the head. It clears the bits of what was read and evicts the first entry without;
unlike Clock it leaves survivors where they are. No departure, except that an entry which is removed
from under the hand moves the hand on.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class _Node:
    """An entry in the queue; `newer` leads towards the head, `older` towards the tail."""

    __slots__ = ("key", "newer", "older", "visited")

    def __init__(self, key: bytes, older: _Node | None) -> None:
        self.key = key
        self.visited = False
        self.newer: _Node | None = None
        self.older = older


@dataclass
class Sieve:
    """O(1) on a hit; an eviction clears one bit per step, each of which a hit has paid for."""

    _nodes: dict[bytes, _Node] = field(init=False, repr=False, compare=False)
    _head: _Node | None = field(init=False, repr=False, compare=False)
    _tail: _Node | None = field(init=False, repr=False, compare=False)
    _hand: _Node | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._nodes = {}
        self._head = self._tail = self._hand = None

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        node = _Node(key, self._head)
        if self._head is None:
            self._tail = node
        else:
            self._head.newer = node
        self._head = node
        self._nodes[key] = node

    def on_hit(self, key: bytes, now: float) -> None:
        self._nodes[key].visited = True

    def on_remove(self, key: bytes) -> None:
        node = self._nodes.pop(key)
        if node is self._hand:
            self._hand = node.newer
        if node.newer is None:
            self._head = node.older
        else:
            node.newer.older = node.older
        if node.older is None:
            self._tail = node.newer
        else:
            node.older.newer = node.newer

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        node = self._hand or self._tail
        assert node is not None, "victim() of an empty tier"
        while node.visited:
            node.visited = False
            node = node.newer or self._tail
            assert node is not None
        self._hand = node  # moves on when the victim is removed
        return node.key
