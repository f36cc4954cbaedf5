"""The artifact store: one content, one folder, complete and intact or not there at all."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capibench.artifacts import META_NAME, ArtifactStore


def write_hello(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "hello.txt").write_text("hello")
    (folder / "numbers.bin").write_bytes(bytes(range(100)))


def refuse(folder: Path) -> None:
    raise AssertionError("made again")


def test_made_once_then_reused_with_its_cost(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    made = store.get_or_make("index", {"n": 3, "type": "flat"}, write_hello)
    found = ArtifactStore(tmp_path).get_or_make("index", {"type": "flat", "n": 3}, refuse)
    assert not made.reused
    assert found.reused
    assert found.path == made.path == store.path_of("index", {"n": 3, "type": "flat"})
    assert found.make_seconds == made.make_seconds > 0
    assert found.size_bytes == made.size_bytes == 105
    assert (found.path / "deep" / "hello.txt").read_text() == "hello"
    assert json.loads((found.path / META_NAME).read_text())["key"] == {"n": 3, "type": "flat"}


def test_other_key_or_kind_is_another_artifact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first = store.get_or_make("index", {"n": 3}, write_hello)
    assert not store.get_or_make("index", {"n": 4}, write_hello).reused
    assert not store.get_or_make("embeddings", {"n": 3}, write_hello).reused
    assert store.get_or_make("index", {"n": 3}, refuse).path == first.path


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def reordered(value: object) -> object:
    if isinstance(value, dict):
        return {name: reordered(item) for name, item in reversed(value.items())}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_order_of_keys_does_not_matter(key: dict[str, object]) -> None:
    store = ArtifactStore(Path("nowhere"))
    other = reordered(key)
    assert isinstance(other, dict)
    assert store.path_of("k", key) == store.path_of("k", other)


@given(
    st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    st.dictionaries(st.text(max_size=3), json_values, max_size=3),
)
def test_different_keys_have_different_paths(a: dict[str, object], b: dict[str, object]) -> None:
    store = ArtifactStore(Path("nowhere"))
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (store.path_of("k", a) == store.path_of("k", b)) == same


def test_crash_in_make_leaves_nothing(tmp_path: Path) -> None:
    def crash(folder: Path) -> None:
        write_hello(folder)
        raise RuntimeError("out of memory")

    store = ArtifactStore(tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        store.get_or_make("index", {"n": 3}, crash)
    assert list((tmp_path / "index").iterdir()) == []
    assert not store.get_or_make("index", {"n": 3}, write_hello).reused


def test_half_made_folder_is_never_picked_up(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    path = store.path_of("index", {"n": 3})
    path.mkdir(parents=True)  # as a tool that copies folders might leave it
    (path / "numbers.bin").write_bytes(b"half")
    made = store.get_or_make("index", {"n": 3}, write_hello)
    assert not made.reused
    assert (path / "numbers.bin").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("damage", ["flip", "remove", "truncate", "meta"])
def test_damaged_artifact_is_made_anew_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = ArtifactStore(tmp_path)
    path = store.get_or_make("index", {"n": 3}, write_hello).path
    content = bytearray((path / "numbers.bin").read_bytes())
    if damage == "flip":
        content[50] ^= 1
        (path / "numbers.bin").write_bytes(content)
    elif damage == "truncate":
        (path / "numbers.bin").write_bytes(content[:50])
    elif damage == "remove":
        (path / "numbers.bin").unlink()
    else:
        (path / META_NAME).write_text("{")
    with caplog.at_level(logging.WARNING):
        again = store.get_or_make("index", {"n": 3}, write_hello)
    assert not again.reused
    assert "damaged" in caplog.text
    assert (path / "numbers.bin").read_bytes() == bytes(range(100))
    assert store.get_or_make("index", {"n": 3}, refuse).reused
    assert [entry.name for entry in (tmp_path / "index").iterdir()] == [path.name]


def test_of_two_makers_at_once_one_wins(tmp_path: Path) -> None:
    both_in_make = threading.Barrier(2)

    def make(folder: Path) -> None:
        write_hello(folder)
        both_in_make.wait(timeout=200)

    store = ArtifactStore(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(store.get_or_make, "index", {"n": 3}, make) for _ in range(2)]
        artifacts = [call.result() for call in calls]
    assert sorted(artifact.reused for artifact in artifacts) == [False, True]
    assert artifacts[0].make_seconds == artifacts[1].make_seconds
    assert [entry.name for entry in (tmp_path / "index").iterdir()] == [artifacts[0].path.name]


def test_bad_keys_and_kinds_are_refused(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(ValueError, match="kind: got"):
        store.path_of("../elsewhere", {})
    with pytest.raises(ValueError):
        store.path_of("index", {"x": float("nan")})
    with pytest.raises(TypeError):
        store.path_of("index", {"x": {1: 2}})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        store.path_of("index", {"x": object()})  # type: ignore[dict-item]


def test_meta_json_is_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=META_NAME):
        ArtifactStore(tmp_path).get_or_make(
            "index", {}, lambda folder: (folder / META_NAME).write_text("mine") and None
        )
    assert list((tmp_path / "index").iterdir()) == []
