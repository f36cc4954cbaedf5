"""The SSD tier after kill -9, flipped bytes, lost files, a full disk: a miss or the right value."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capibench.cache.access_log import READS_PER_BLOCK
from capibench.cache.compression import Compression
from capibench.cache.envelope import encode
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.residents import Entry
from capibench.cache.rocks import FORMAT_FOLDER

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
from capibench.cache.compression import Compression
from capibench.cache.envelope import encode
from capibench.cache.keys import CacheType, cache_key
from capibench.cache.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.residents import Entry

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


def test_flips_and_cuts_anywhere_in_any_file_never_make_a_wrong_value(tmp_path: Path) -> None:
    store = opened(tmp_path / "l2")
    for number in range(120):
        store.put(key(number), *entry(number), float(number))
    store._store._db.flush()
    for number in range(120, 200):
        store.put(key(number), *entry(number), float(number))
    rng = np.random.default_rng(1)
    num_hits = []
    for round_ in range(60):
        folder = tmp_path / str(round_)
        shutil.copytree(tmp_path / "l2", folder)
        files = sorted(f for f in folder.glob("*/*") if f.stat().st_size and f.name != "LOCK")
        path = files[round_ % len(files)]
        content = bytearray(path.read_bytes())
        position = int(rng.integers(len(content)))
        if round_ % 3 == 2:
            del content[position:]
        else:
            content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        damaged = opened(folder)
        found = [damaged.get(RESULT, key(number), 300.0) for number in range(200)]
        assert all(f is None or f.value == value(n) for n, f in enumerate(found))
        num_hits.append(sum(f is not None for f in found))
        assert damaged.put(key(999), *entry(999), 300.0) or damaged.num_errors
        damaged.close()
        shutil.rmtree(folder)
    store.close()
    assert max(num_hits) == 200
    assert np.mean(num_hits) > 100, num_hits


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


def test_files_of_another_version_are_no_hits_and_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(key(1), *entry(1), 0.0)
    store.close()
    (tmp_path / FORMAT_FOLDER).rename(tmp_path / "format_1")
    (tmp_path / "thesis.txt").write_text("the folder of somebody who uses it for more")
    store = opened(tmp_path)
    assert store.get(RESULT, key(1), 1.0) is None
    store.clear()
    store.close()
    assert (tmp_path / "format_1" / "CURRENT").is_file()
    assert (tmp_path / "thesis.txt").is_file()


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
from capibench.cache.l2 import L2
from capibench.cache.policies.lru import Lru
from capibench.cache.residents import Entry
from capibench.cache.envelope import encode
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
