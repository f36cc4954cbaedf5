"""Every hit of the published policies, against models written from the papers and nothing else.

The models are lists and linear searches over entries of size one; they share no code with the
policies (the frequency sketch's hash apart, which is part of its definition).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np
import pytest
from choice_files import load_choice

from capibench.cache.policy_parts.simulated import SimulatedTier
from capibench.cache.replay.bounds import belady_hits
from capibench.cache.replay.trace import make_trace
from capibench.config import build

Model = Callable[[Sequence[int], int], list[bool]]
NUM = 1500


def fifo(stream: Sequence[int], capacity: int) -> list[bool]:
    queue: list[int] = []
    hits = []
    for key in stream:
        hits.append(key in queue)
        if not hits[-1]:
            queue = [*queue, key][-capacity:]
    return hits


def lru(stream: Sequence[int], capacity: int) -> list[bool]:
    hits = []
    for place, key in enumerate(stream):
        before = list(stream[:place])
        if key not in before:
            hits.append(False)
            continue
        last = place - 1 - before[::-1].index(key)
        hits.append(len(set(before[last:])) <= capacity)  # stack distance (Mattson 1970)
    return hits


def lfu(stream: Sequence[int], capacity: int) -> list[bool]:
    """LFU-DA: K = frequency + L, where L is the K of the last one evicted."""
    table: dict[int, list[int]] = {}  # key → K, time of last access, frequency
    age, hits = 0, []
    for now, key in enumerate(stream):
        hits.append(key in table)
        frequency = table[key][2] + 1 if key in table else 1
        if key not in table and len(table) == capacity:
            victim = min(table, key=lambda k: table[k][:2])
            age = table.pop(victim)[0]
        table[key] = [frequency + age, now, frequency]
    return hits


def arc(stream: Sequence[int], c: int) -> list[bool]:
    """Figure 4 of the paper, line by line; the left end of each list is its LRU."""
    t1: list[int] = []
    t2: list[int] = []
    b1: list[int] = []
    b2: list[int] = []
    p, hits = 0.0, []

    def replace(x: int) -> None:
        if len(t1) >= 1 and ((x in b2 and len(t1) == p) or len(t1) > p):
            b1.append(t1.pop(0))
        else:
            b2.append(t2.pop(0))

    for x in stream:
        hits.append(x in t1 or x in t2)
        if x in t1:
            t1.remove(x)
            t2.append(x)
        elif x in t2:
            t2.remove(x)
            t2.append(x)
        elif x in b1:
            p = min(c, p + max(len(b2) / len(b1), 1))
            replace(x)
            b1.remove(x)
            t2.append(x)
        elif x in b2:
            p = max(0, p - max(len(b1) / len(b2), 1))
            replace(x)
            b2.remove(x)
            t2.append(x)
        else:
            if len(t1) + len(b1) == c:
                if len(t1) < c:
                    b1.pop(0)
                    replace(x)
                else:
                    t1.pop(0)
            else:
                total = len(t1) + len(t2) + len(b1) + len(b2)
                if total >= c:
                    if total == 2 * c:
                        b2.pop(0)
                    replace(x)
            t1.append(x)
    return hits


def sieve(stream: Sequence[int], capacity: int) -> list[bool]:
    """Algorithm 1; the queue's first item is the tail (oldest), the hand is a position."""
    queue: list[int] = []
    visited: dict[int, bool] = {}
    hand, hits = 0, []
    for key in stream:
        hits.append(key in visited)
        if hits[-1]:
            visited[key] = True
            continue
        if len(queue) == capacity:
            hand %= len(queue)
            while visited[queue[hand]]:
                visited[queue[hand]] = False
                hand = (hand + 1) % len(queue)
            at_head = hand == len(queue) - 1
            del visited[queue.pop(hand)]
            if at_head:
                hand = 0  # past the head: from the tail again
        queue.append(key)
        visited[key] = False
    return hits


def s3_fifo(stream: Sequence[int], capacity: int) -> list[bool]:
    """Algorithm 1 with M served first when over its share, S not over its own while filling, and
    the newcomer's ghost taken out first."""
    small_share = int(capacity * 0.1)
    ghost_share = int(capacity * (1 - 0.1))
    s: list[int] = []
    m: list[int] = []
    g: list[int] = []
    freq: dict[int, int] = {}
    evicted_once, hits = False, []

    def evict_m() -> None:
        while True:
            t = m.pop(0)
            if freq[t] == 0:
                del freq[t]
                return
            freq[t] -= 1
            m.append(t)

    def evict_s() -> None:
        while s:
            t = s.pop(0)
            if freq[t] > 1:
                m.append(t)
                freq[t] = 0
            else:
                del freq[t]
                g.append(t)
                del g[: max(len(g) - ghost_share, 0)]
                return

    for x in stream:
        hits.append(x in freq)
        if hits[-1]:
            freq[x] = min(freq[x] + 1, 3)
            continue
        known = x in g
        if known:
            g.remove(x)
        while len(s) + len(m) >= capacity:
            evicted_once = True
            if len(m) > capacity - small_share or not s:
                evict_m()
            else:
                evict_s()
        if known or (not evicted_once and len(s) >= small_share):
            m.append(x)
        else:
            s.append(x)
        freq[x] = 0
    return hits


class NaiveSketch:
    """Counters by (row, place); rows of a power of two, four counters per entry."""

    def __init__(self, sample_factor: int) -> None:
        self.sample_factor = sample_factor
        self.width, self.entries, self.added = 64, 16, 0
        self.count: dict[tuple[int, int], int] = {}

    def places(self, key: bytes) -> list[tuple[int, int]]:
        multipliers = (2654435761, 2246822519, 3266489917, 668265263)  # xxHash's primes
        return [
            (row, (crc32(key) * multiplier // 2**15) % self.width)
            for row, multiplier in enumerate(multipliers)
        ]

    def add(self, key: bytes) -> None:
        for place in self.places(key):
            self.count[place] = min(self.count.get(place, 0) + 1, 15)
        self.added += 1
        if self.added >= self.sample_factor * self.entries:
            self.count = {place: count // 2 for place, count in self.count.items()}
            self.added //= 2

    def estimate(self, key: bytes) -> int:
        return min(self.count.get(place, 0) for place in self.places(key))

    def hold(self, num_entries: int) -> None:
        self.entries = max(self.entries, num_entries)
        while self.width < 4 * self.entries:
            copies = {(row, at + self.width): n for (row, at), n in self.count.items()}
            self.count.update(copies)
            self.width *= 2


def w_tinylfu(stream: Sequence[int], capacity: int) -> list[bool]:
    window_share = int(capacity * 0.1)
    protected_share = int((capacity - window_share) * 0.8)
    sketch = NaiveSketch(10)
    window: list[int] = []
    probation: list[int] = []
    protected: list[int] = []
    hits = []
    for key in stream:
        hits.append(key in window + probation + protected)
        sketch.add(name(key))
        if key in window:
            window.append(window.pop(window.index(key)))
        elif key in protected:
            protected.append(protected.pop(protected.index(key)))
        elif key in probation:
            probation.remove(key)
            protected.append(key)
            if len(protected) > protected_share:
                probation.append(protected.pop(0))
        else:
            num_resident = len(window) + len(probation) + len(protected)
            refused = False
            if num_resident == capacity:
                main = probation or protected
                if window_share == 0:  # the newcomer itself is compared
                    refused = sketch.estimate(name(key)) <= sketch.estimate(name(main[0]))
                    if not refused:
                        main.pop(0)
                elif len(window) < window_share:
                    main.pop(0)
                else:
                    candidate = window.pop(0)
                    newer = sketch.estimate(name(candidate)) > sketch.estimate(name(main[0]))
                    if newer:
                        main.pop(0)
                        probation.append(candidate)
                num_resident -= 1
            if refused:
                continue
            sketch.hold(num_resident + 1)
            if window_share == 0:
                probation.append(key)
                continue
            window.append(key)
            if len(window) > window_share:
                probation.append(window.pop(0))
    return hits


def belady(stream: Sequence[int], capacity: int) -> list[bool]:
    held: set[int] = set()
    hits = []
    for place, key in enumerate(stream):
        hits.append(key in held)
        future = list(stream[place + 1 :])
        held.add(key)
        if len(held) > capacity:
            distance = {k: future.index(k) if k in future else math.inf for k in sorted(held)}
            furthest = max(distance.values())
            # Who is never asked for again does not matter; the newcomer is not kept then.
            worst = [k for k in distance if distance[k] == furthest]
            held.remove(key if key in worst else worst[0])
    return hits


MODELS: dict[str, Model] = {
    "fifo": fifo,
    "lru": lru,
    "lfu": lfu,
    "arc": arc,
    "s3_fifo": s3_fifo,
    "sieve": sieve,
    "w_tinylfu": w_tinylfu,
}


def name(key: int) -> bytes:
    return b"key-%d" % key


def streams() -> dict[str, list[int]]:
    rng = random.Random(11)
    weights = [1 / rank for rank in range(1, 201)]
    zipf = rng.choices(range(200), weights, k=NUM)
    return {
        "zipf": zipf,
        "shifting_zipf": [
            (rank + place // 300 * 37) % 200
            for place, rank in enumerate(rng.choices(range(200), weights, k=NUM))
        ],
        "scan_mix": [
            1000 + place if place % 400 > 300 else rank
            for place, rank in enumerate(rng.choices(range(200), weights, k=NUM))
        ],
        "loop": [place % 45 for place in range(NUM)],
        "recency": [
            max(place // 4 - rank, -1)
            for place, rank in enumerate(rng.choices(range(200), weights, k=NUM))
        ],
        "uniform": [rng.randrange(90) for _ in range(NUM)],
    }


STREAMS = streams()


@pytest.mark.parametrize("capacity", [7, 40])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("policy", MODELS)
def test_every_hit_is_that_of_the_naive_model(policy: str, stream: str, capacity: int) -> None:
    node = load_choice("cache", policy)["policy"]
    if policy == "w_tinylfu":
        node |= {"window_share": 0.1}  # a window of 0 and of 4 entries
    tier = SimulatedTier(build(node, "cache.policy"), capacity)
    keys = STREAMS[stream]
    found = [tier.access(name(key), 1, 1.0, now, math.inf) for now, key in enumerate(keys)]
    assert found == MODELS[policy](keys, capacity)


@pytest.mark.parametrize("capacity", [7, 40])
@pytest.mark.parametrize("stream", STREAMS)
def test_belady_hits_as_often_as_the_naive_model(stream: str, capacity: int) -> None:
    """Which of several keys leaves that are never asked for again is not defined: counts agree."""
    trace = make_trace("made", STREAMS[stream])
    hits = belady_hits(trace, capacity, np.full(len(trace), True))
    assert int(hits.sum()) == sum(belady(STREAMS[stream], capacity))
    assert not hits[0]
