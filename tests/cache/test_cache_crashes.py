"""The SSD tier after kill -9, flipped bytes, lost files, a full disk: a miss or the right value."""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from capibench.cache.keys import CacheType, cache_key
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.access_log import READS_PER_BLOCK
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.rocks import FORMAT_FOLDER
from capibench.cache.tiers.tiered import TieredCache

RESULT, VECTOR = CacheType.QUERY_RESULT, CacheType.EMBEDDING
COMPRESSION = Compression(level=3, min_saving=0.1, dictionary_kib=4, num_samples=40)


def key(number: int, kind: CacheType = RESULT) -> bytes:
    return cache_key(kind, str(number))


def value(number: int) -> list[object]:
    return [number, f"the answer to question {number} of the quiz is " + str(number) * 20]


def entry(number: int, expires_s: float = 1e9, tags: tuple[str, ...] = ()) -> tuple[Entry, bytes]:
    named = Entry(RESULT, 1.0, expires_s, name=f"q{number}", tags=tags)
    return named, encode(value(number))


def opened(folder: Path, capacity_bytes: int = 1 << 22) -> L2:
    return L2(Lru(), capacity_bytes, folder, compression=COMPRESSION)


# Writes, reads, overwrites and invalidates without end, and prints what it has done, each line
# after the deed; a value names its own version.
WRITER = """
import itertools, pathlib, sys
from capibench.cache.tiers.compression import Compression
from capibench.cache.tiers.envelope import encode
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiers.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.residents import Entry

RESULT = CacheType.QUERY_RESULT
store = L2(Lru(), 60_000, pathlib.Path(sys.argv[1]), compression=Compression(3, 0.1, 4, 40))
first = int(sys.argv[2])
for step in itertools.count(first):
    key = cache_key(RESULT, str(step * 7 % 50))
    if step % 5 == 4:
        store.remove(key)
        print("removed", step * 7 % 50, step, flush=True)
    else:
        store.get(RESULT, key, float(step))
        record = encode([step * 7 % 50, step, "some text that repeats itself " * 3])
        store.put(key, Entry(RESULT, 1.0, 1e9 + step), record, float(step))
        print("stored", step * 7 % 50, step, flush=True)
"""


def test_a_writer_that_is_killed_at_any_moment_leaves_no_wrong_value(tmp_path: Path) -> None:
    """What was acknowledged last for a key is what comes back, or one deed later, or nothing."""
    rng = np.random.default_rng(0)
    first, latest, num_found = 0, dict[int, tuple[str, int]](), 0
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(int(rng.integers(1, 400))):
                deed, number, step = writer.stdout.readline().split()
                latest[int(number)] = (deed, int(step))
            writer.kill()
            for line in writer.stdout:  # what it did until the signal arrived
                if line.endswith("\n"):
                    deed, number, step = line.split()
                    latest[int(number)] = (deed, int(step))
        last_step = max(step for _, step in latest.values())
        store = opened(tmp_path)
        assert store.num_errors == 0
        for number, (deed, step) in latest.items():
            found = store.get(RESULT, key(number), 0.0)
            if found is None:
                continue
            num_found += 1
            assert found.value[0] == number
            assert found.value[2] == "some text that repeats itself " * 3
            # The deed after the last that it could tell of may have happened as well.
            assert found.value[1] in (step, last_step + 1)
            assert deed == "stored" or found.value[1] == last_step + 1
            latest[number] = ("stored", found.value[1])
        store.close()
        first = last_step + 2
    assert num_found > 100


def tiers(folder: Path) -> TieredCache:
    return TieredCache(L1(Lru(), 4_000), opened(folder, 20_000), {RESULT: 1e9})


def copied(whole: Path, copy: Path) -> Path:
    """As a killed process leaves it. By another process: whoever closes a file, even one that was
    only read, gives up its own locks on it."""
    subprocess.run(["cp", "-r", whole, copy], check=True)
    return copy


Latest = dict[int, list[object] | None]


def go_on(cache: TieredCache, latest: Latest, now: float) -> None:
    """Of 60 values overwrite some and invalidate others in each way; older ones are evicted."""
    for number in range(60):
        new = [number, f"of {now} " * 9]
        tags = (f"t{number // 3}",)
        cache.put(RESULT, key(number), new, 1.0, now, name=f"q{number:02}", tags=tags)
        latest[number] = new
    for number in range(0, 60, 5):
        cache.remove(key(number))
    cache.remove_matching("q1?")
    cache.remove_tagged("t9")
    latest.update(dict.fromkeys((*range(0, 60, 5), *range(10, 20), 27, 28, 29)))


def stores_with_a_past(folder: Path) -> list[tuple[Path, Latest]]:
    """Of a process that ended in order; of one that was killed, with a log; and of one that was
    killed while RocksDB wrote a sorted file: with two logs, and the manifest of before."""
    latest: Latest = {}
    for now in (1.0, 2.0, 3.0):
        cache = tiers(folder / "open")
        go_on(cache, latest, now)
        assert cache.stats()["tiers"]["l2"]["evicted"] > 0
        cache.close()
    closed = copied(folder / "open", folder / "closed"), dict(latest)
    cache = tiers(folder / "open")
    go_on(cache, latest, 4.0)
    flushing = copied(folder / "open", folder / "flushing")
    cache._l2._store._db.flush()
    go_on(cache, latest, 5.0)
    killed = copied(folder / "open", folder / "killed")
    for path in (*killed.glob("*/*.log"), *killed.glob("*/LEDGER")):
        shutil.copy(path, flushing / FORMAT_FOLDER)
    cache.close()
    return [closed, (killed, latest), (flushing, latest)]


def served(folder: Path, latest: Latest) -> list[bool]:
    """Which values are; every one of them is the latest."""
    cache = tiers(folder)
    found = {number: cache.lookup(RESULT, key(number), 10.0) for number in latest}
    cache.close()
    assert all(f.value == latest[number] for number, f in found.items() if f.is_hit)
    return [f.is_hit for f in found.values()]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["closed", "killed", "flushing"])
def test_no_damage_in_any_file_brings_back_what_was_overwritten_or_invalidated(
    tmp_path: Path, which: int
) -> None:
    """A flipped bit, a cut, a lost file: a miss or the latest value."""
    whole, latest = stores_with_a_past(tmp_path)[which]
    assert sum(served(copied(whole, tmp_path / "whole"), latest)) > 10
    rng = np.random.default_rng(which)
    num_hits = []
    files = [f for f in sorted(whole.glob("*/*")) if f.stat().st_size and f.name != "LOCK"]
    shares = [path for path in files if re.match(r".*\.log|.*\.sst|MANIFEST|LEDGER", path.name)]
    assert len(shares) >= 3
    for path in (*files, *4 * shares):
        damaged = copied(whole, tmp_path / "damaged")
        copy = damaged / FORMAT_FOLDER / path.name
        content = bytearray(copy.read_bytes())
        position, how = int(rng.integers(len(content))), rng.integers(5)
        if how < 2:
            content[position] ^= 1 << int(rng.integers(8))
        else:
            del content[position:]
        copy.write_bytes(content)
        if how == 4:
            copy.unlink()
        num_hits.append(sum(served(damaged, latest)))
        shutil.rmtree(damaged)
    assert np.mean(num_hits) > 5, num_hits


def test_a_manifest_that_is_cut_anywhere_brings_back_nothing(tmp_path: Path) -> None:
    """RocksDB then opens the store as it was before its last file."""
    store = opened(tmp_path / "l2")
    for number in range(20):
        store.put(key(number), *entry(number), 0.0)
    store.close()
    store = opened(tmp_path / "l2")
    for number in range(10):
        store.remove(key(number))
    store.close()
    manifest = next((tmp_path / "l2").glob("*/MANIFEST-*"))
    num_hits = []
    for place in range(0, manifest.stat().st_size, 12):
        damaged = copied(tmp_path / "l2", tmp_path / str(place))
        os.truncate(damaged / FORMAT_FOLDER / manifest.name, place)
        store = opened(damaged)
        found = [store.get(RESULT, key(number), 1.0) for number in range(20)]
        store.close()
        assert not any(found[:10])
        num_hits.append(sum(f is not None for f in found))
    assert max(num_hits) == 10, "an older state of the database has the other ten as well"


def test_the_policy_knows_again_what_was_read(tmp_path: Path) -> None:
    """Also of a process that was killed, but for the reads of the last block."""
    store = opened(tmp_path / "l2")
    for number in range(10):
        store.put(key(number), *entry(number), float(number))
    size = store.num_bytes // 10
    for turn in range(READS_PER_BLOCK):
        store.get(RESULT, key(turn % 2), 20.0 + turn)
    shutil.copytree(tmp_path / "l2", tmp_path / "killed")
    store.get(RESULT, key(5), 500.0)
    store.close()
    for folder, kept in (("killed", [0, 1, 8, 9]), ("l2", [0, 1, 5, 9])):
        reopened = opened(tmp_path / folder, 4 * size + 8)
        assert [n for n in range(10) if key(n) in reopened] == kept
        reopened.close()


def test_the_notes_of_reads_do_not_grow_without_bound(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(key(0), *entry(0), 0.0)
    for turn in range(20 * READS_PER_BLOCK):
        store.get(RESULT, key(0), float(turn))
    assert sum(1 for name, _ in store._store.scan() if name != key(0)) <= 2
    store.close()


def test_names_and_tags_are_known_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(key(1), *entry(1, tags=("doc/1", "dök")), 0.0)
    store.put(key(2), *entry(2), 0.0)
    store.close()
    store = opened(tmp_path)
    assert store.tagged("dök") == [key(1)]
    assert store.matching("q[2-9]") == [key(2)]
    store.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "l2"
    store = opened(folder)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FORMAT_FOLDER).stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*/*")}
    assert modes == {0o600}


def test_stores_of_older_versions_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    copied(tmp_path / FORMAT_FOLDER, tmp_path / "format_2")
    (tmp_path / FORMAT_FOLDER).rename(tmp_path / "format_1000")
    mine = [tmp_path / "thesis.txt", tmp_path / "format_1" / "thesis.txt"]
    mine += [tmp_path / "format_2" / "thesis.txt", tmp_path / "discarded" / "thesis.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("the folder of somebody who uses it for more")
    store = opened(tmp_path)
    assert store.get(RESULT, key(1), 1.0) is None
    store.clear()
    store.close()
    assert all(path.is_file() for path in mine)
    assert (tmp_path / "format_1000" / "CURRENT").is_file(), "a newer version's"
    left = {path.name for path in (tmp_path / "format_2").iterdir()}
    assert left == {"thesis.txt"}


def test_what_was_stored_later_than_now_is_dropped(tmp_path: Path) -> None:
    """The clock went back: nobody knows how old it is."""
    store = opened(tmp_path)
    store.put(key(1), *entry(1), 10.0)
    store.put(key(2), *entry(2), 30.0)
    store.close()
    store = L2(Lru(), 1 << 20, tmp_path, 20.0)
    assert (key(1) in store, key(2) in store) == (True, False)
    store.close()


def test_cleared_is_empty_and_stays_empty(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(60):
        store.put(key(number), *entry(number), 0.0)
    store.clear()
    assert (len(store), store.num_bytes) == (0, 0)
    store.put(key(7), *entry(7), 0.0)
    store.close()
    store = opened(tmp_path)
    assert [number for number in range(60) if key(number) in store] == [7]
    found = store.get(RESULT, key(7), 1.0)
    assert found is not None
    assert found.value == value(7)
    store.close()


def test_what_cannot_be_deleted_does_not_rise_again(tmp_path: Path) -> None:
    """On a full disk RocksDB cannot even note a deletion: then the whole store goes."""
    code = """
import pathlib, resource, signal, sys
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiers.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.residents import Entry
from capibench.cache.tiers.envelope import encode
kind = CacheType.EMBEDDING
store = L2(Lru(), 1 << 24, pathlib.Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
keys = [cache_key(kind, str(number)) for number in range(100)]
for key in keys:
    store.put(key, Entry(kind, 1.0, 9.0), encode(bytes(range(256)) * 20), 0.0)
for key in keys[:5]:
    store.remove(key)
assert store.num_errors, "no fault was met"
assert all(store.get(kind, key, 1.0) is None for key in keys[:5])
store.close()
store = L2(Lru(), 1 << 24, pathlib.Path(sys.argv[1]))
assert all(store.get(kind, key, 1.0) is None for key in keys[:5])
print("gone")
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert "gone" in run.stdout, run.stderr


@pytest.mark.parametrize("compression", [None, COMPRESSION])
def test_compressed_records_come_back_also_without_compression(
    tmp_path: Path, compression: Compression | None
) -> None:
    store = opened(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    for number in range(100):
        store.put(key(number), *entry(number), 0.0)
        record = encode(vectors[number])
        store.put(key(number, VECTOR), Entry(VECTOR, 1.0, 1e9), record, 0.0)
    effects = store.stats()["compression"]
    texts, noise = effects["query_result"], effects["embedding"]
    assert texts["ratio"] > 1.3
    assert texts["dictionary_bytes"] > 0
    assert noise["compressed"] == 0
    assert noise["ratio"] == 1.0
    assert noise["not_tried"] > 70, "what does not pay is hardly tried"
    assert store.counters[RESULT].stored_bytes == texts["bytes_after"]
    num_bytes = store.num_bytes
    store.close()
    store = L2(Lru(), 1 << 22, tmp_path, compression=compression)
    assert store.num_bytes == num_bytes
    for number in range(100):
        found = store.get(RESULT, key(number), 1.0)
        assert found is not None
        assert found.value == value(number)
        found = store.get(VECTOR, key(number, VECTOR), 1.0)
        assert found is not None
        np.testing.assert_array_equal(found.value, vectors[number])
    store.close()


def test_a_lost_dictionary_makes_misses(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(100):
        store.put(key(number), *entry(number), 0.0)
    dictionaries = [name for name, _ in store._store.scan() if name.startswith(b"dictionary/")]
    assert dictionaries == [b"dictionary/query_result"]
    store._store._db.put(dictionaries[0], b"damaged")
    store.close()
    store = opened(tmp_path)
    found = [store.get(RESULT, key(number), 1.0) for number in range(100)]
    assert 10 < sum(f is not None for f in found) < 50
    assert all(f is None or f.value == value(n) for n, f in enumerate(found))
    store.close()


HEADER = struct.Struct("<BBIQQddddIQ")


@pytest.mark.parametrize(
    ("field", "unknown"), [(0, 7), (1, 9), (2, 10**6), (3, 5), (4, 2**64 - 1), (9, 3), (9, 10**6)]
)
def test_a_whole_record_that_says_what_this_version_does_not_know_is_a_miss(
    tmp_path: Path, field: int, unknown: int
) -> None:
    """Type, codec, ticket, event, or the length of the labels."""
    store = opened(tmp_path)
    for number in range(4):
        store.put(key(number), *entry(number), 0.0)
    stored = store._store._db.get(key(1))
    fields = list(HEADER.unpack_from(stored, 4))
    fields[field] = unknown
    changed = HEADER.pack(*fields) + stored[4 + HEADER.size :]
    crc = zlib.crc32(changed, zlib.crc32(key(1)))
    store._store._db.put(key(1), crc.to_bytes(4, "little") + changed)
    store.close()
    store = opened(tmp_path)
    found = [store.get(RESULT, key(number), 1.0) for number in range(4)]
    assert [f is not None for f in found] == [True, False, True, True]
    assert store.put(key(1), *entry(1), 1.0)
    assert store.get(RESULT, key(1), 1.0) is not None
    store.close()


def test_the_word_corruption_in_a_path_is_not_taken_for_damage(tmp_path: Path) -> None:
    """A store that cannot be opened because too many files are open is a good store."""
    code = """
import os, pathlib, resource, sys
from capibench.cache.tiers.l2 import L2
from capibench.cache.policies.lru import Lru
folder = pathlib.Path(sys.argv[1])
num_open = len(os.listdir("/proc/self/fd"))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 3, hard))
store = L2(Lru(), 1 << 20, folder)
assert "Too many open files" in store.first_error, store.first_error
store.close()
"""
    folder = tmp_path / "Corruption: No such file"
    store = opened(folder)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    store = opened(folder)
    assert store.get(RESULT, key(1), 1.0) is not None
    store.close()


@pytest.mark.parametrize("deed", ["remove", "overwrite", "glob", "tag", "clear"])
def test_what_is_invalidated_while_the_tier_could_not_be_opened_does_not_rise(
    tmp_path: Path, deed: str
) -> None:
    code = """
import os, pathlib, resource, sys
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.tiers.l1 import L1
from capibench.cache.tiers.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.tiers.tiered import TieredCache
kind = CacheType.QUERY_RESULT
folder, deed = pathlib.Path(sys.argv[1]), sys.argv[2]
num_open = len(os.listdir("/proc/self/fd"))
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 3, hard))
cache = TieredCache(L1(Lru(), 9999), L2(Lru(), 9999, folder), {kind: 1e9})
assert "Too many open files" in cache.stats()["l2_first_error"]
key = cache_key(kind, "1")
if deed == "remove": cache.remove(key)
if deed == "overwrite": cache.put(kind, key, "new", 1.0, 1.0)
if deed == "glob": cache.remove_matching("q*")
if deed == "tag": cache.remove_tagged("t")
if deed == "clear": cache.clear()
cache.close()
"""
    store = opened(tmp_path)
    store.put(key(1), *entry(1, tags=("t",)), 0.0)
    store.close()
    for what, is_kept in (("nothing", True), (deed, False)):
        subprocess.run([sys.executable, "-c", code, str(tmp_path), what], check=True)
        store = opened(tmp_path)
        assert (store.get(RESULT, key(1), 1.0) is not None) == is_kept
        assert store.put(key(2), *entry(2), 1.0)
        store.close()


def test_what_cannot_be_invalidated_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    place = tmp_path / FORMAT_FOLDER
    for name in ("LEDGER", "CURRENT"):  # as on a disk that lets nothing be opened or changed
        (place / name).rename(tmp_path / name)
        (place / name).mkdir()
    store = opened(tmp_path)
    caplog.clear()
    for number in range(3):
        store.remove(key(number))
    assert len(caplog.records) == 1
    assert "may come back" in caplog.text
    assert store.num_errors == 4
    for name in ("LEDGER", "CURRENT"):
        (place / name).rmdir()
        (tmp_path / name).rename(place / name)
    store.close()
    store = opened(tmp_path)
    assert store.num_errors == 0
    assert store.get(RESULT, key(1), 1.0) is None
    store.close()


def test_a_tier_works_again_after_its_files_could_not_be_merged(tmp_path: Path) -> None:
    """RocksDB takes nothing more once it has met a damaged block while merging files."""
    policy = Lru()
    store = L2(policy, 1 << 24, tmp_path)
    for number in range(2000):
        store.put(key(number), Entry(RESULT, 1.0, 1e9), encode("x" * 500), 0.0)
    store.close()
    L2(policy, 1 << 24, tmp_path).close()  # which moves the log into a sorted file
    largest = max(tmp_path.glob("*/*.sst"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    store, was_refused = L2(policy, 1 << 24, tmp_path), False
    for number in range(2000, 42_000):
        was_refused |= not store.put(key(number), Entry(RESULT, 1.0, 1e9), encode("y" * 1500), 0.0)
    assert was_refused
    assert all(store.get(RESULT, key(number), 1.0) for number in range(40_000, 42_000))
    store.close()
