"""The two tiers together: demotion, promotion, expiry, damage, failing disks, many threads."""

from __future__ import annotations

import json
import linecache
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.policies.s3_fifo import S3Fifo
from capibench.cache.policy import EvictionPolicy
from capibench.cache.tiers import l1 as l1_module
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.tiered import TieredCache
from capibench.errors import ConfigError

RESULT, VECTOR, OUTPUT = CacheType.QUERY_RESULT, CacheType.EMBEDDING, CacheType.MODEL_OUTPUT
TTL_S = {RESULT: 100.0, VECTOR: 1000.0, OUTPUT: 10.0}
VALUE = b"v" * 100
SLOT = 16 + len(encode(VALUE)) + l1_module.OVERHEAD_BYTES


def key(number: int, kind: CacheType = RESULT) -> bytes:
    return cache_key(kind, str(number))


def two_tiers(folder: Path, l1_slots: int = 2, l2_bytes: int = 1 << 20) -> TieredCache:
    return TieredCache(L1(Lru(), l1_slots * SLOT), L2(Lru(), l2_bytes, folder / "l2"), TTL_S)


def ram_only(l1_slots: int = 2) -> TieredCache:
    return TieredCache(L1(Lru(), l1_slots * SLOT), None, TTL_S)


def test_a_cached_none_is_not_a_miss() -> None:
    cache = ram_only()
    assert cache.lookup(RESULT, key(1), 0.0).tier == "miss"
    cache.put(RESULT, key(1), None, 1.0, 0.0)
    found = cache.lookup(RESULT, key(1), 1.0)
    assert (found.value, found.tier, found.is_hit) == (None, "l1", True)


def test_changing_a_value_outside_changes_nothing_inside() -> None:
    cache = ram_only(8)
    vector = np.arange(8, dtype=np.float32)
    cache.put(VECTOR, key(1), vector, 1.0, 0.0)
    vector[:] = -1
    served = cache.lookup(VECTOR, key(1), 0.0).value
    served[:] = -2
    np.testing.assert_array_equal(cache.lookup(VECTOR, key(1), 0.0).value, np.arange(8))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary(max_size=9),
    st.text(st.characters(exclude_categories=()), max_size=9), st.lists(st.integers(), max_size=3),
)  # fmt: skip


@settings(max_examples=40)
@given(values=st.lists(VALUES, min_size=1, max_size=30))
def test_every_value_is_the_same_from_ram_and_moved_down(values: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = two_tiers(Path(folder), l1_slots=8)
        for number, value in enumerate(values):
            cache.put(RESULT, key(number), value, 1.0, 0.0)
            assert repr(cache.lookup(RESULT, key(number), 0.0).value) == repr(value)
        assert (cache.stats()["tiers"]["l2"]["entries"] > 0) == (len(values) > 8)
        for number, value in enumerate(values):
            found = cache.lookup(RESULT, key(number), 0.0)
            assert found.is_hit
            assert repr(found.value) == repr(value)  # its type, and -0.0, too
        cache.close()


def test_each_type_expires_exactly_at_its_time() -> None:
    for kind, ttl_s in TTL_S.items():
        cache = ram_only()
        cache.put(kind, key(1, kind), VALUE, 1.0, 5.0)
        assert cache.lookup(kind, key(1, kind), np.nextafter(5.0 + ttl_s, 0.0)).is_hit
        assert not cache.lookup(kind, key(1, kind), 5.0 + ttl_s).is_hit
        tier = cache.stats()["tiers"]["l1"]
        assert (tier["expired"], tier["entries"], tier["bytes"]) == (1, 0, 0)


def test_a_type_without_life_is_off() -> None:
    cache = TieredCache(L1(Lru(), 4 * SLOT), None, {RESULT: 0.0, VECTOR: 9.0})
    for kind in (RESULT, OUTPUT):
        cache.put(kind, key(1, kind), VALUE, 1.0, 0.0)
        assert not cache.caches(kind)
        assert cache.lookup(kind, key(1, kind), 0.0).tier == "off"
    assert cache.caches(VECTOR)
    stats = cache.stats()
    assert stats["tiers"]["l1"]["entries"] == 0
    assert stats["tiers"]["l1"]["misses"] == 0


def test_victims_move_down_and_hits_move_up_with_the_rest_of_their_life(tmp_path: Path) -> None:
    cache = two_tiers(tmp_path)
    for number in range(3):
        cache.put(RESULT, key(number), VALUE, 1.0, float(number))  # 0 moves down at 2 s
    assert cache.lookup(RESULT, key(0), 50.0).tier == "l2"  # moves up; 1 moves down
    assert cache.lookup(RESULT, key(0), 60.0).tier == "l1"
    assert cache.lookup(RESULT, key(1), 60.0).tier == "l2"  # moves up; 2 moves down
    assert not cache.lookup(RESULT, key(0), 100.0).is_hit  # put at 0: not a second longer
    assert cache.lookup(RESULT, key(1), 100.9).is_hit
    assert not cache.lookup(RESULT, key(1), 101.0).is_hit
    stats = cache.stats()
    l1, l2 = stats["tiers"]["l1"], stats["tiers"]["l2"]
    assert (l1["hits"], l1["demoted"], l2["hits"], l2["promoted"]) == (2, 3, 2, 2)
    assert stats["types"]["query_result"]["hits"] == 4
    assert stats["types"]["query_result"]["hit_bytes"] == 4 * len(encode(VALUE))
    assert stats["types"]["query_result"]["misses"] == 2
    assert json.loads(json.dumps(stats)) == stats
    cache.close()


def test_moving_down_again_writes_nothing_and_a_new_value_replaces_the_old(tmp_path: Path) -> None:
    cache = two_tiers(tmp_path, l1_slots=1)
    cache.put(RESULT, key(0), VALUE, 1.0, 0.0)
    cache.put(RESULT, key(1), VALUE, 1.0, 0.0)
    for _ in range(3):
        assert cache.lookup(RESULT, key(0), 1.0).tier == "l2"
        assert cache.lookup(RESULT, key(1), 1.0).tier == "l2"
    assert cache.stats()["tiers"]["l2"]["stored"] == 2
    cache.put(RESULT, key(0), b"new", 1.0, 2.0)
    cache.put(RESULT, key(2), VALUE, 1.0, 2.0)
    assert cache.lookup(RESULT, key(0), 3.0).value == b"new"
    cache.close()


def test_too_large_for_ram_goes_to_ssd_and_too_large_for_both_nowhere(tmp_path: Path) -> None:
    cache = two_tiers(tmp_path, l1_slots=1, l2_bytes=20_000)
    cache.put(RESULT, key(1), bytes(10_000), 1.0, 0.0)
    cache.put(RESULT, key(2), bytes(30_000), 1.0, 0.0)
    assert cache.lookup(RESULT, key(1), 1.0).tier == "l2"
    assert not cache.lookup(RESULT, key(2), 1.0).is_hit
    tiers = cache.stats()["tiers"]
    assert (tiers["l1"]["rejected_too_large"], tiers["l2"]["rejected_too_large"]) == (2, 1)
    cache.close()


def test_removed_is_gone_from_both_and_expire_drops_all_that_is_stale(tmp_path: Path) -> None:
    cache = two_tiers(tmp_path, l1_slots=1)
    for number in range(3):
        cache.put(RESULT, key(number), VALUE, 1.0, 0.0)
    assert cache.remove(key(0))
    assert not cache.remove(key(0))
    assert not cache.lookup(RESULT, key(0), 1.0).is_hit
    assert cache.expire(99.0) == 0
    assert cache.expire(100.0) == 2
    assert cache.stats()["tiers"]["l2"]["bytes"] == 0
    cache.close()


def entry(value: object = VALUE, expires_s: float = 100.0) -> tuple[Entry, bytes]:
    return Entry(RESULT, 1.0, expires_s), encode(value)


def test_ssd_tier_reopens_with_values_expiry_and_order(tmp_path: Path) -> None:
    folder = tmp_path / "l2"
    store = L2(Lru(), 1 << 20, folder)
    for number in range(10):
        store.put(key(number), *entry(number, 50.0 + number), float(number))
    size = store.num_bytes // 10
    store.remove(key(5))
    store.close()
    store.close()
    assert folder.stat().st_mode & 0o777 == 0o700

    store = L2(Lru(), 4 * size + 3, folder)  # smaller now: the newest stay
    assert sorted(n for n in range(10) if key(n) in store) == [6, 7, 8, 9]
    assert store.num_bytes <= store.capacity_bytes
    found = store.get(RESULT, key(9), 58.9)
    assert found is not None
    assert (found.value, found.entry.expires_s) == (9, 59.0)
    assert store.get(RESULT, key(9), 59.0) is None
    store.close()


def test_hits_on_ssd_are_counted_by_the_bytes_before_compression(tmp_path: Path) -> None:
    plain = Compression(level=1, min_saving=0.1, dictionary_kib=0, num_samples=8)
    record = encode("words and words " * 200)
    for _ in ("stored", "reopened"):
        store = L2(Lru(), 1 << 20, tmp_path, compression=plain)
        store.put(key(0), Entry(RESULT, 1.0, 100.0), record, 0.0)
        assert 0 < store.num_bytes < len(record) / 2
        for _ in range(3):
            assert store.get(RESULT, key(0), 1.0) is not None
        assert store.counters[RESULT].hit_bytes == 3 * len(record)
        store.close()


@pytest.mark.parametrize("suffix", ["sst", "log"])
def test_flipped_bytes_on_disk_are_misses_never_wrong_values(tmp_path: Path, suffix: str) -> None:
    """The files are those of a process that was killed: copied while the store is open."""
    store = L2(Lru(), 1 << 22, tmp_path / "l2")
    for number in range(300):
        store.put(key(number), *entry([number, "x" * 500]), 0.0)
    if suffix == "sst":
        store._store._db.flush()
    num_hits = []
    for fraction in (None, 0.1, 0.3, 0.5, 0.7, 0.9):
        killed = tmp_path / str(fraction)
        shutil.copytree(tmp_path / "l2", killed)
        if fraction is not None:
            path = max(killed.glob(f"*/*.{suffix}"), key=lambda p: p.stat().st_size)
            content = bytearray(path.read_bytes())
            content[int(len(content.rstrip(bytes(1))) * fraction)] ^= 0x10
            path.write_bytes(content)
        reopened = L2(Lru(), 1 << 22, killed)
        found = [reopened.get(RESULT, key(number), 1.0) for number in range(300)]
        reopened.close()
        assert all(f is None or f.value == [n, "x" * 500] for n, f in enumerate(found))
        num_hits.append(sum(f is not None for f in found))
    store.close()
    assert num_hits[0] == 300, "a killed process loses nothing"
    assert max(num_hits[1:]) < 300
    if suffix == "sst":
        assert min(num_hits[1:]) > 250, "one block is lost"
    else:
        assert min(num_hits[1:]) > 200, "a block of the log is lost"


@pytest.mark.parametrize("name", ["MANIFEST-*", "CURRENT", "rocksdict-config.json"])
def test_a_store_that_is_damaged_as_a_whole_starts_empty_and_works(
    tmp_path: Path, name: str
) -> None:
    store = L2(Lru(), 1 << 20, tmp_path)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    for path in tmp_path.glob(f"*/{name}"):
        path.write_bytes(b"garbage" * 20)
    store = L2(Lru(), 1 << 20, tmp_path)
    found = store.get(RESULT, key(1), 1.0)
    assert found is None or found.value == 1
    assert store.put(key(2), *entry(2), 0.0)
    found = store.get(RESULT, key(2), 1.0)
    assert found is not None
    assert found.value == 2
    assert (tmp_path.stat().st_mode & 0o777) == 0o700
    store.close()


def test_what_is_stale_leaves_before_what_is_fresh() -> None:
    cache = ram_only(2)
    cache.put(RESULT, key(1), VALUE, 1.0, 0.0)
    cache.put(OUTPUT, key(2, OUTPUT), VALUE, 1.0, 0.0)  # younger, but stale at 10 s
    cache.put(RESULT, key(3), VALUE, 1.0, 10.0)
    assert cache.lookup(RESULT, key(1), 11.0).is_hit
    tier = cache.stats()["tiers"]["l1"]
    assert (tier["expired"], tier["evicted"]) == (1, 0)
    assert tier["by_type"]["model_output"]["expired"] == 1


def test_a_record_changed_behind_our_back_is_a_counted_miss(tmp_path: Path) -> None:
    store = L2(Lru(), 1 << 20, tmp_path)
    for number in range(4):
        store.put(key(number), *entry(number), 0.0)
    stored = store._store._db.get(key(0))
    for position in range(0, len(stored) * 8, 7):
        flipped = bytearray(stored)
        flipped[position // 8] ^= 1 << position % 8
        store.put(key(0), *entry(0, 101.0 + position), 0.0)
        store._store._db.put(key(0), bytes(flipped))
        assert store.get(RESULT, key(0), 1.0) is None
    store._store._db.put(key(1), store._store._db.get(key(2)))  # whole, but another key's
    assert store.get(RESULT, key(1), 1.0) is None
    store._store._db.put(key(3), b"")
    store.close()

    store = L2(Lru(), 1 << 20, tmp_path)
    assert len(store) == 1
    assert store.counters[RESULT].damaged == 1
    assert store.get(RESULT, key(2), 1.0).value == 2
    store.close()


@pytest.mark.parametrize("operation", ["get", "put", "delete"])
def test_a_time_limit_that_strikes_while_the_store_works_is_the_callers(
    tmp_path: Path, operation: str
) -> None:
    """A signal handler raises at any moment, and what it raises is no failure of the disk."""

    class Interrupted:
        def __init__(self, db: Any) -> None:
            self._db = db

        def __getattr__(self, name: str) -> Any:
            if name == operation:
                raise TimeoutError
            return getattr(self._db, name)

    store = L2(Lru(), 1 << 20, tmp_path)
    entry = Entry(RESULT, 0.1, 9.0)
    store.put(key(1), entry, encode("v"), 0.0)
    db = store._store._db
    store._store._db = Interrupted(db)  # type: ignore[assignment]
    calls = {
        "get": lambda: store.get(RESULT, key(1), 1.0),
        "put": lambda: store.put(key(2), entry, encode("v"), 0.0),
        "delete": lambda: store.remove(key(1)),
    }
    with pytest.raises(TimeoutError):
        calls[operation]()
    store._store._db = db
    assert store.num_errors == 0
    found = store.get(RESULT, key(1), 1.0)
    assert (found is None) == (operation == "delete")
    store.close()


def test_a_folder_in_use_is_a_clear_error(tmp_path: Path) -> None:
    store = L2(Lru(), 1 << 20, tmp_path)
    with pytest.raises(ConfigError, match="used by another process"):
        L2(Lru(), 1 << 20, tmp_path)
    code = (
        "import sys, pathlib; from capibench.cache.tiers.l2 import L2; "
        "from capibench.cache.policies.lru import Lru; L2(Lru(), 9999, pathlib.Path(sys.argv[1]))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert b"ConfigError: cache.folder" in other.stderr
    store.close()


def test_an_ssd_tier_that_cannot_be_opened_costs_hits_not_requests(tmp_path: Path) -> None:
    (tmp_path / "l2").write_text("a file where the folder should be")
    cache = two_tiers(tmp_path)
    for number in range(4):
        cache.put(RESULT, key(number), VALUE, 1.0, 0.0)
    assert [cache.lookup(RESULT, key(n), 1.0).tier for n in range(4)] == [
        "miss",
        "miss",
        "l1",
        "l1",
    ]
    stats = cache.stats()
    assert stats["l2_errors"] == 3  # the open and two victims
    assert stats["l2_first_error"].startswith("open: ")
    cache.close()


def test_a_disk_that_fills_up_costs_hits_not_requests(tmp_path: Path) -> None:
    """A process that may not write files past 200 kB stands for the full disk."""
    code = """
import pathlib, resource, signal, sys
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.tiered import TieredCache
kind = CacheType.EMBEDDING
cache = TieredCache(L1(Lru(), 20_000), L2(Lru(), 1 << 24, pathlib.Path(sys.argv[1])), {kind: 9.0})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
value = bytes(range(256)) * 20
for number in range(100):
    cache.put(kind, cache_key(kind, str(number)), value, 1.0, 0.0)
found = [cache.lookup(kind, cache_key(kind, str(number)), 1.0) for number in reversed(range(100))]
assert all(f.value == value for f in found if f.is_hit)
assert found[0].tier == 'l1' and any(not f.is_hit for f in found)
assert cache.stats()["l2_errors"] > 0
assert cache.stats()["l2_first_error"].startswith("write"), cache.stats()["l2_first_error"]
print("served")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert "served" in run.stdout, run.stderr


def test_ram_tier_never_holds_more_than_its_capacity_under_many_threads() -> None:
    tier = L1(Lru(), 20 * SLOT)
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for step in range(1500):
            number = int(rng.integers(60))
            found = tier.get(RESULT, key(number), float(step))
            if found is None:
                tier.put(key(number), *entry(str(number) * 20, step + 50.0), float(step))
            elif found.value != str(number) * 20:
                wrong.append(found.value)
            if step % 97 == 0:
                tier.remove(key(number))
            if tier.num_bytes > tier.capacity_bytes:
                wrong.append(tier.num_bytes)

    run_threads(hammer)
    assert wrong == []
    assert tier.counters[RESULT].hits + tier.counters[RESULT].misses == 4 * 1500
    assert tier.expire(1e9) == 0 or len(tier) == 0
    assert tier.num_bytes == 0


def test_two_tiers_serve_right_values_to_many_threads(tmp_path: Path) -> None:
    cache = two_tiers(tmp_path, l1_slots=5, l2_bytes=10_000)
    wrong: list[Any] = []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for step in range(600):
            number = int(rng.integers(80))
            found = cache.lookup(RESULT, key(number), step / 10)
            if not found.is_hit:
                cache.put(RESULT, key(number), [number] * 30, 1.0, step / 10)
            elif found.value != [number] * 30:
                wrong.append(found)

    run_threads(hammer)
    assert wrong == []
    stats = cache.stats()
    assert stats["types"]["query_result"]["lookups"] == 4 * 600
    for tier in stats["tiers"].values():
        assert 0 < tier["bytes"] <= tier["capacity_bytes"]
    assert stats["l2_errors"] == 0
    cache.close()


def run_threads(work: Any) -> None:
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


STRIDE_ON_SSD = 499  # of the lines before which it is pressed


class CtrlC:
    """Pressed once, before one line of the tiers' code: the n-th from `press_at(n)` on. Not before
    `with`, to which a trace also comes at the end of the block with the lock still held, nor before
    `try`, which no block covers: at neither Python takes a signal."""

    def __init__(self) -> None:
        self._lines_left = 0

    def press_at(self, line: int) -> None:
        self._lines_left = line
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, what: str, _: object) -> Any:
        if "capibench/cache/" not in frame.f_code.co_filename:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if what == "line" and not line.lstrip().startswith(("with ", "try:")):
            self._lines_left -= 1
            if self._lines_left == 0:
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize("policy", [Lru(), S3Fifo(0.1, 2)])
@pytest.mark.parametrize("with_ssd", [False, True])
def test_ctrl_c_at_any_moment_leaves_a_tier_that_works(
    tmp_path: Path, policy: EvictionPolicy, with_ssd: bool
) -> None:
    ctrl_c, traced = CtrlC(), sys.gettrace()
    for line in range(1, 100_000, STRIDE_ON_SSD if with_ssd else 7):
        folder = tmp_path / str(line)
        tier = L2(policy, 1_800, folder) if with_ssd else L1(policy, 8_000)
        ctrl_c.press_at(line)
        num_interrupts, latest = 0, dict[int, str | None]()
        for step in range(45):
            number, new = step * 7 % 11, f"{step} " * 30
            labelled = Entry(RESULT, 1.0, 15.0 + step, tags=(f"t{number}",))
            try:
                tier.get(RESULT, key(step * 3 % 11), float(step))
                if step % 4 == 3:
                    for tagged in tier.tagged(f"t{number}"):
                        tier.remove(tagged)
                    latest[number] = None
                else:
                    latest.pop(number, None)  # old or new, if it is interrupted
                    tier.put(key(number), labelled, encode(new), float(step))
                    latest[number] = new
            except KeyboardInterrupt:
                num_interrupts += 1
                if step % 4 == 3:
                    tier.remove(key(number))  # once more
                    latest[number] = None
        sys.settrace(traced)
        for is_reopened in (False, True)[: 1 + with_ssd]:
            if is_reopened:
                tier.close()  # type: ignore[union-attr]
                tier = L2(Lru(), 1_800, folder)
            assert 0 < tier.num_bytes <= tier.capacity_bytes
            assert tier.counters[RESULT].bytes == tier.num_bytes
            assert tier.counters[RESULT].entries == len(tier) == len(tier.keys())
            for number, value in latest.items():
                found = tier.get(RESULT, key(number), 45.0)
                assert found is None or found.value == value
        if isinstance(tier, L2):
            tier.close()
        tier.expire(1e9)
        assert (len(tier), tier.num_bytes) == (0, 0)
        if not num_interrupts:
            break
    assert line > 1_000
