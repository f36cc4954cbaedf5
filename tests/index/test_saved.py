"""A saved directory is what was saved or one clear error, whenever the saving process died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_contract import drawn, ids_of

from capibench.errors import DataError
from capibench.index.saved import MANIFEST_NAME, load_directory, save_directory
from capibench.index.stored_index import load_index


def writer(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def test_replaces_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    save_directory(folder, "note", {"n": 1}, {"a": writer("first"), "b": writer("second")})
    save_directory(folder, "note", {"n": 2}, {"a": writer("third")})
    saved = load_directory(folder, "note")
    assert saved.facts == {"n": 2}
    assert {name: path.read_text() for name, path in saved.files.items()} == {"a": "third"}
    assert saved.num_bytes == 5
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [MANIFEST_NAME, saved.files["a"].name]
    )


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    folder = tmp_path / "kept"
    save_directory(folder, "note", {}, {"a": writer("first")})
    with pytest.raises(OSError, match="disk full"):
        save_directory(folder, "note", {}, {"a": writer("second"), "b": fail})
    assert load_directory(folder, "note").files["a"].read_text() == "first"


def test_one_save_waits_for_another(tmp_path: Path) -> None:
    """Each save clears away what it does not know: what another is just writing, too."""
    folder, finished = tmp_path / "kept", threading.Event()

    def save_second() -> None:
        save_directory(folder, "note", {"n": 2}, {"a": writer("second")})
        finished.set()

    second = threading.Thread(target=save_second)

    def write_first(path: Path) -> None:
        path.write_text("first")
        second.start()
        assert not finished.wait(0.05)

    save_directory(folder, "note", {"n": 1}, {"a": write_first, "b": writer("more")})
    second.join()
    saved = load_directory(folder, "note")
    assert saved.facts == {"n": 2}
    assert saved.files["a"].read_text() == "second"
    assert len(list(folder.iterdir())) == 2


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        save_directory(tmp_path, "note", {}, {"a": writer("first")})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    save_directory(tmp_path / "kept", "note", {}, {})
    with pytest.raises(DataError, match="got a saved note; expected a saved index"):
        load_directory(tmp_path / "kept", "index")


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_a_bit(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def the_file(folder: Path, name: str) -> Path:
    return next(path for path in folder.iterdir() if path.name.startswith(f"{name}-"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "vectors": (lambda f: flip_a_bit(the_file(f, "vectors")), "damaged: it does not have its reco"),
    "ids": (lambda f: flip_a_bit(the_file(f, "ids")), "damaged: it does not have its recorded"),
    "structure": (lambda f: flip_a_bit(the_file(f, "structure"), 40), "damaged: it does not have"),
    "cut": (lambda f: os.truncate(the_file(f, "structure"), 100), "damaged: it does not have"),
    "missing": (lambda f: the_file(f, "ids").unlink(), "missing, though the manifest names it"),
    "half": (lambda f: (f / MANIFEST_NAME).unlink(), "half written: it has no manifest"),
    "version": (lambda f: change_manifest(f, format=2), "got format 2; expected 1"),
    "facts": (lambda f: change_manifest(f, facts={}), "damaged: it does not have its recorded"),
    "garbage": (lambda f: (f / MANIFEST_NAME).write_text("{"), "damaged: it is no manifest"),
    "list": (lambda f: (f / MANIFEST_NAME).write_text("[]"), "damaged: it is no manifest"),
    "bytes": (lambda f: (f / MANIFEST_NAME).write_bytes(b"\xff"), "damaged: it is no text"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_error(choice: Callable[..., Any], tmp_path: Path, damage: str) -> None:
    index, queries = choice("index", "hybrid"), drawn(3, 8, 1)
    index.build(drawn(200, 8, 0), ids_of(200))
    folder = tmp_path / "index"
    index.save(folder)
    other = choice("index", "hybrid")
    other.build(drawn(50, 8, 5), ids_of(50))
    before = other.search(queries, 5)

    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(DataError, match=message):
        other.load(folder)
    for old, new in zip(before, other.search(queries, 5), strict=True):
        np.testing.assert_array_equal(old, new)  # nothing half-loaded

    index.save(folder)  # the damaged one can be replaced
    other.load(folder)
    np.testing.assert_array_equal(other.search(queries, 5)[0], index.search(queries, 5)[0])


def test_a_later_library_is_refused(choice: Callable[..., Any], tmp_path: Path) -> None:
    index = choice("index", "hybrid")
    index.build(drawn(50, 8, 0), ids_of(50))
    facts = index.saved_facts()
    facts["libraries"] = {"faiss": "99.0.0"}
    save_directory(tmp_path / "index", "index", facts, index.saved_files())
    with pytest.raises(DataError, match=r"written by faiss 99\.0\.0; expected at most"):
        load_index(tmp_path / "index")


KILLED = textwrap.dedent(
    """
    # Saves index B over index A again and again, in children that each kill themselves at a later
    # one of the file operations that saving consists of (sys.addaudithook sees them all).
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from index_contract import drawn
    from capibench.index.hybrid import Hybrid
    from capibench.index.metric import Metric

    folder = Path(sys.argv[1])
    def index_of(first_id):
        index = Hybrid(1, Metric.COSINE, "float32", 0.2, 0.1, 2, 2, 5, 50, 0, 4, 8)
        index.build(drawn(300, 8, first_id), np.arange(300) + first_id)
        return index
    a, b = index_of(0), index_of(1000)

    def dies_at(step):
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"):
                seen += 1
                if seen > step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        b.save(folder)

    for step in range(1000):
        a.save(folder)
        child = os.fork()
        if child == 0:
            dies_at(step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        loaded = index_of(0)
        loaded.load(folder)
        ids, _ = loaded.search(drawn(4, 8, 7), 10)
        expected = (a if ids.max() < 1000 else b).search(drawn(4, 8, 7), 10)[0]
        np.testing.assert_array_equal(ids, expected)
        print("AB"[ids.max() >= 1000], end="", flush=True)
        if not os.WIFSIGNALED(status):
            break
    """
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs fork and SIGKILL")
def test_killed_at_every_step_the_old_or_the_new_one_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "index")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    old, new = done.stdout.count("A"), done.stdout.count("B")
    assert done.stdout == "A" * old + "B" * new  # one moment from which on the new one is there
    assert old >= 8
    assert new >= 2
