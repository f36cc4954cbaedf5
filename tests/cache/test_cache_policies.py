"""The laws of `EvictionPolicy`, for every policy of the tree, and what tells the two apart."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from capibench.cache.keys import CacheType
from capibench.cache.policies.lru import Lru
from capibench.cache.policies.ttl import Ttl
from capibench.cache.policy import NeedsCapacity
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1, OVERHEAD_BYTES
from capibench.cache.tiers.residents import MAX_NOTED, Entry, Residents
from capibench.config import build, conf_dir

KIND = CacheType.QUERY_RESULT


def policies() -> dict[str, dict[str, Any]]:
    nodes = {}
    for path in sorted((conf_dir() / "cache").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        if "policy" in node:
            nodes[path.stem] = node["policy"]
    return nodes


POLICIES = policies()


def fresh(name: str) -> Any:
    return build(POLICIES[name], "cache.policy")


@dataclass
class Watched:
    """Hands every call on and checks the laws that bind policy and tier."""

    name: str
    resident: set[bytes]
    victims: list[bytes]
    policy: Any = field(init=False)

    def __post_init__(self) -> None:
        self.policy = fresh(self.name)

    def open(self, capacity_bytes: int) -> None:
        if isinstance(self.policy, NeedsCapacity):
            self.policy.open(capacity_bytes)

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        assert key not in self.resident
        self.resident.add(key)
        self.policy.on_insert(key, size, cost_s, now, expires_s)

    def on_hit(self, key: bytes, now: float) -> None:
        assert key in self.resident
        self.policy.on_hit(key, now)

    def on_remove(self, key: bytes) -> None:
        self.resident.remove(key)
        self.policy.on_remove(key)

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        assert key not in self.resident
        return self.policy.admit(key, size, cost_s, now)

    def victim(self, now: float) -> bytes:
        assert self.resident
        victim = self.policy.victim(now)
        assert victim in self.resident, "a victim is resident; removed keys are forgotten"
        self.victims.append(victim)
        return victim


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "remove", "wait"]),
        st.integers(0, 11),
        st.integers(0, 60),
        st.sampled_from([0.5, 3.0, 20.0, math.inf]),
    ),
    max_size=120,
)


def replay(name: str, operations: list[tuple[str, int, int, float]]) -> list[object]:
    watched = Watched(name, set(), [])
    residents = Residents(watched, 100, 0)
    now, seen = 0.0, []
    for operation, number, size, ttl_s in operations:
        key = b"%02d" % number
        if operation == "wait":
            now += ttl_s if ttl_s < math.inf else 1.0
        elif operation == "get":
            resident = residents.get(key)
            hit = resident is not None and now < resident.entry.expires_s
            seen.append(hit)
            if hit:
                residents.replay_hit(key, now)
        elif operation == "remove" and key in residents:
            residents.drop(key)
        elif operation == "put":
            if key in residents:
                residents.drop(key)
            residents.stale(now)
            entry = Entry(KIND, 1.0, now + ttl_s)
            size = residents.size_of(key, entry, size)
            may_enter, _ = residents.make_room(key, entry, size, now)
            if may_enter:
                residents.insert(key, entry, size, now)
        assert set(residents) == watched.resident
        assert residents.num_bytes <= residents.capacity_bytes
        assert residents.counters[KIND].bytes == residents.num_bytes
        assert residents.counters[KIND].entries == len(residents)
    return [*seen, *watched.victims]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60)
@given(operations=OPERATIONS)
def test_laws_hold_and_the_same_trace_gives_the_same_hits(name: str, operations: Any) -> None:
    assert replay(name, operations) == replay(name, operations)


def entry(now: float = 0.0, ttl_s: float = math.inf) -> Entry:
    return Entry(KIND, 1.0, now + ttl_s)


RECORD = encode(b"")
ENTRY_BYTES = 2 + len(RECORD) + OVERHEAD_BYTES  # with a key of two bytes


def streams() -> dict[str, list[int]]:
    rng = random.Random(5)
    weights = [1 / rank for rank in range(1, 101)]
    return {
        "zipf": rng.choices(range(100), weights, k=4000),
        "uniform": [rng.randrange(100) for _ in range(2000)],
        "loop": [i % 30 for i in range(600)],
        "scan_and_hot": [i % 7 if i % 3 else 10 + i % 90 for i in range(2000)],
    }


@pytest.mark.parametrize("num_fitting", [1, 10, 29])
@pytest.mark.parametrize("stream", streams())
def test_lru_hits_are_those_of_a_naive_model(stream: str, num_fitting: int) -> None:
    tier = L1(Lru(), num_fitting * ENTRY_BYTES)
    model: OrderedDict[int, None] = OrderedDict()
    for now, number in enumerate(streams()[stream]):
        key = b"%02d" % number
        hit = tier.get(KIND, key, float(now)) is not None
        assert hit == (number in model)
        if hit:
            model.move_to_end(number)
        else:
            tier.put(key, entry(), RECORD, float(now))
            model[number] = None
            if len(model) > num_fitting:
                model.popitem(last=False)


def hits_of(policy: Any) -> list[bool]:
    tier = L1(policy, 2 * ENTRY_BYTES)
    for now, (key, ttl_s) in enumerate(
        [(b"aa", 90.0), (b"bb", 20.0), (b"bb", 20.0), (b"cc", 50.0)]
    ):
        if tier.get(KIND, key, now) is None:
            tier.put(key, entry(now, ttl_s), RECORD, now)
    return [tier.get(KIND, key, 5.0) is not None for key in (b"aa", b"bb", b"cc")]


def test_ttl_evicts_what_expires_first_where_lru_evicts_what_was_read_first() -> None:
    assert hits_of(Lru()) == [False, True, True]
    assert hits_of(Ttl()) == [True, False, True]


@dataclass
class Told:
    """Writes down what a tier tells its policies, all in one log."""

    log: list[tuple[str, bytes, float]]

    def on_insert(self, key: bytes, size: int, cost_s: float, now: float, expires_s: float) -> None:
        self.log.append(("insert", key, now))

    def on_hit(self, key: bytes, now: float) -> None:
        self.log.append(("hit", key, now))

    def on_remove(self, key: bytes) -> None:
        self.log.append(("remove", key, 0.0))

    def admit(self, key: bytes, size: int, cost_s: float, now: float) -> bool:
        return True

    def victim(self, now: float) -> bytes:
        raise AssertionError("there is room")


@pytest.mark.parametrize("quotas", [None, {CacheType.EMBEDDING: 0.5}])
def test_hits_are_settled_in_their_order_before_anything_else(quotas: Any) -> None:
    log: list[tuple[str, bytes, float]] = []
    tier = L1(Told(log), 40 * ENTRY_BYTES, quotas)
    kinds = {b"q": KIND, b"e": CacheType.EMBEDDING}
    expected: list[tuple[str, bytes, float]] = []
    rng = random.Random(3)

    def put(key: bytes, now: float) -> None:
        tier.put(key, Entry(kinds[key[:1]], 2.0, math.inf), RECORD, now)
        expected.append(("insert", key, now))

    keys = [b"%s%d" % (kind, number) for kind in kinds for number in range(4)]
    for key in keys:
        put(key, 0.0)
    for step in range(1, 5 * MAX_NOTED):
        key, now = rng.choice(keys), float(step)
        if step % (2 * MAX_NOTED) < MAX_NOTED and step % 7 == 0:
            tier.remove(key)
            expected.append(("remove", key, 0.0))
            put(key, now)
        else:
            assert tier.get(kinds[key[:1]], key, now) is not None
            expected.append(("hit", key, now))
    for first, kind in kinds.items():
        hits = sum(call == "hit" and key[:1] == first for call, key, _ in expected)
        counters = tier.counters[kind]
        assert counters.hits == hits
        assert counters.saved_s == 2.0 * hits
        assert counters.hit_bytes == hits * len(RECORD)
        told, due = ([c for c in calls if c[1][:1] == first] for calls in (log, expected))
        assert told == due
    assert quotas is not None or log == expected


def test_a_hit_that_is_noted_when_its_entry_has_left_is_counted_and_not_told() -> None:
    residents = Residents(Lru(), 100, 0)
    residents.insert(b"aa", entry(), 10, 0.0)
    resident = residents.get(b"aa")
    assert resident is not None
    residents.drop(b"aa")
    residents.note_hit(resident, 1.0)
    residents.insert(b"bb", entry(), 10, 1.0)
    assert residents.counters[KIND].hits == 1
    assert residents.make_room(b"cc", entry(), 95, 2.0)[1][0].key == b"bb"


@dataclass
class OwnTable:
    """An LRU that lends its table to no tier."""

    lru: Lru = field(init=False)

    def __post_init__(self) -> None:
        self.lru = Lru()
        self.on_insert, self.on_hit = self.lru.on_insert, self.lru.on_hit
        self.on_remove, self.admit = self.lru.on_remove, self.lru.admit
        self.victim = self.lru.victim


def evicted_by(policy: Any, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    residents, victims = Residents(policy, 100, 0), []
    for step in range(600):
        key, now = b"%02d" % rng.randrange(25), float(step)
        resident = residents.get(key)
        deed = rng.choice(["read", "read", "read", "renew", "drop", "stale", "put"])
        if deed == "read" and resident is not None:
            residents.note_hit(resident, now)
            continue
        with residents:
            residents.stale(now if deed == "stale" else 0.0)
            if deed == "renew" and key in residents:
                residents.renew(key, now)
                assert residents.get(key) is resident
            elif deed == "drop" and key in residents:
                residents.drop(key)
            elif key not in residents:
                victims += residents.make_room(key, entry(now, 90.0), 10, now)[1]
                residents.insert(key, entry(now, 90.0), 10, now)
        assert all(residents.get(key) is not None for key in residents)
    return [victim.key for victim in victims]


@pytest.mark.parametrize("seed", range(5))
def test_a_tier_in_the_policys_own_table_evicts_as_one_beside_it(seed: int) -> None:
    victims = evicted_by(Lru(), seed)
    assert len(victims) > 50
    assert victims == evicted_by(OwnTable(), seed)


@pytest.mark.parametrize("quotas", [None, {KIND: 0.5}])
def test_after_a_change_that_was_cut_short_all_is_there_in_a_lent_table_too(quotas: Any) -> None:
    residents = Residents(Lru(), 80, 0, quotas)
    for number in range(4):
        residents.insert(b"%02d" % number, entry(), 10, float(number))
    residents.replay_hit(b"00", 4.0)

    def cut_short() -> None:
        with residents:
            residents.drop(b"02")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    with residents:
        assert set(residents) == {b"00", b"01", b"03"}
        assert residents.num_bytes == 30
        victims = residents.make_room(b"04", entry(), 80 if quotas is None else 40, 5.0)[1]
    # In its own table it knows what was read last; one beside it begins anew.
    due = [b"01", b"03", b"00"] if quotas is None else [b"00", b"01", b"03"]
    assert [victim.key for victim in victims] == due


def test_ttl_breaks_ties_by_insertion() -> None:
    policy = Ttl()
    for key in (b"b", b"a", b"c"):
        policy.on_insert(key, 1, 1.0, 0.0, 9.0)
    policy.on_hit(b"b", 1.0)
    assert policy.victim(2.0) == b"b"
    policy.on_remove(b"b")
    assert policy.victim(2.0) == b"a"


def test_a_prototype_shares_no_state_with_the_tiers() -> None:
    prototype = Lru()
    first, second = L1(prototype, 2 * ENTRY_BYTES), L1(prototype, 2 * ENTRY_BYTES)
    first.put(b"aa", entry(), RECORD, 0.0)
    assert b"aa" in first
    for key in (b"bb", b"cc", b"dd"):
        second.put(key, entry(), RECORD, 0.0)
    assert b"aa" in first
    assert len(second) == 2
