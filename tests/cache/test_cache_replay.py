"""The replay tool: what it counts, and what it prints and writes."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_files import choices

from capibench.cache.policies.lru import Lru
from capibench.cache.policy import EvictionPolicy
from capibench.cache.replay.choices import capacities, load_policies, policy_names
from capibench.cache.replay.command import main
from capibench.cache.replay.replay import Replayed, replay
from capibench.cache.replay.trace import Columns, KeyTrace, make_trace, read_key_trace
from capibench.errors import ConfigError, DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
TRACE = FIXTURES / "traces" / "cache_keys.csv"
FOUND = Columns(None, None, None, None, None)


@functools.cache
def prototypes(names: tuple[str, ...]) -> dict[str, EvictionPolicy]:
    return load_policies(names, None, ())


def replayed(trace: KeyTrace, sizes: Sequence[int], *names: str, warmup: int = 0) -> Replayed:
    return replay(trace, prototypes(names), sizes, warmup, lambda _: None)


# Hits in the shipped trace of 1,200 accesses, at 5 % and 20 % of the working set's bytes.
GOLDEN: dict[str, tuple[int, int]] = {
    "adaptive": (435, 639),
    "arc": (422, 637),
    "fifo": (309, 552),
    "gdsf": (404, 617),
    "lfu": (389, 617),
    "lru": (346, 600),
    "predictive": (398, 667),
    "s3_fifo": (440, 647),
    "sieve": (435, 637),
    "ttl": (309, 552),
    "w_tinylfu": (459, 644),
    "belady": (592, 789),
    "infinite": (836, 836),
}


def test_golden_hits_on_the_shipped_trace() -> None:
    trace = read_key_trace(TRACE, FOUND)
    sizes = capacities("5%,20%", trace.working_set_bytes)
    outcome = replayed(trace, sizes, *policy_names())
    found: dict[str, list[int]] = {}
    for row in outcome.outcomes:
        found.setdefault(row.policy, []).append(row.hits)
    for ceiling in outcome.ceilings:
        assert ceiling.belady is not None
        found.setdefault("belady", []).append(ceiling.belady.hits)
    found["infinite"] = [outcome.infinite.hits] * 2
    assert {name: tuple(hits) for name, hits in found.items()} == GOLDEN


def test_every_choice_of_the_tree_can_be_replayed() -> None:
    assert set(policy_names()) == set(choices("cache")) - {"none", "belady"}


# --- what is counted


def test_seconds_bytes_and_warm_up() -> None:
    trace = make_trace(
        "made",
        ["a", "b", "a", "b", "a"],
        sizes=np.asarray([10, 30, 10, 30, 10]),
        costs_s=np.asarray([1.0, 4.0, 2.0, 4.0, 3.0]),
    )
    (row,) = replayed(trace, [100], "lru").outcomes
    assert (row.hits, row.lookups, row.byte_hit_ratio) == (3, 5, 50 / 90)
    assert (row.seconds_saved, row.saved_share) == (9.0, 9 / 14)
    (row,) = replayed(trace, [100], "lru", warmup=3).outcomes
    assert (row.hits, row.lookups, row.saved_share) == (2, 2, 1.0)
    assert (row.requests_per_s or 0) > 0


def test_entries_go_stale() -> None:
    trace = make_trace(
        "made",
        ["a"] * 6,
        times_s=np.asarray([0.0, 9.0, 10.0, 11.0, 19.9, 20.0]),
        ttls_s=np.full(6, 10.0),
    )
    outcome = replayed(trace, [1], "lru")
    assert outcome.outcomes[0].hits == 3  # stored at 0, again at 10, again at 20
    assert outcome.infinite.hits == 3
    assert outcome.ceilings[0].belady is not None
    assert outcome.ceilings[0].belady.hits >= 3


def test_accesses_that_a_hit_makes_needless_do_not_happen() -> None:
    """A request asks for its answer and, when that is not there, for two parts of it."""
    names = ["r1", "e1", "o1", "r1", "e1", "o1", "r2", "e1", "o2"]
    trace = make_trace(
        "made",
        names,
        costs_s=np.asarray([5.0, 1.0, 3.0] * 3),
        skips=np.asarray([2, 0, 0] * 3),
    )
    outcome = replayed(trace, [10], "lru")
    (row,) = outcome.outcomes
    assert (row.lookups, row.hits) == (7, 2)  # r1 the second time, e1 the third
    assert row.seconds_saved == 6.0
    assert row.saved_share == 6.0 / 15.0  # without a cache: three answers
    assert outcome.infinite.hits == 2
    assert outcome.ceilings[0].belady is None  # its accesses would depend on its hits
    assert row.below_bound is None


def test_bad_sizes_and_warm_up() -> None:
    trace = make_trace("made", ["a", "b"])
    with pytest.raises(ValueError, match="sizes: got 0 bytes"):
        replay(trace, {"lru": Lru()}, [0], 0, lambda _: None)
    with pytest.raises(
        ValueError, match="warmup: got 2; expected at least 0, and fewer than the 2"
    ):
        replay(trace, {"lru": Lru()}, [1], 2, lambda _: None)


# --- the command


def test_the_command_prints_and_writes(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    main([str(TRACE), "--policies", "lru,arc,adaptive", "--sizes", "5%,20%", "--out", str(out)])
    shown = capsys.readouterr().out
    for text in ("lru", "arc", "adaptive", "belady (no bound)", "infinite cache", "seconds saved"):
        assert text in shown
    assert "points of hit ratio below what is possible at most" in shown
    assert "possible at most: no policy has more, and perhaps none has as much" in shown
    document = json.loads((out / "replay.json").read_text())
    assert document["schema_version"] == 1
    assert {row["policy"] for row in document["outcomes"]} == {"lru", "arc", "adaptive"}
    assert document["outcomes"][-1]["chosen"][0]["num_accesses"] == 0
    with (out / "replay.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 2 + 1
    assert math.isclose(float(rows[0]["hit_ratio"]) + float(rows[0]["miss_ratio"]), 1)
    page = (out / "replay.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_is_printed_says_whether_the_bound_is_reached(tmp_path: Path, capsys: Any) -> None:
    keys, out = tmp_path / "keys.csv", tmp_path / "out"
    keys.write_text("key\n" + "\n".join("abcabdabe"))
    main([str(keys), "--policies", "lru", "--sizes", "2", "--warmup", "3", "--out", str(out)])
    shown, page = capsys.readouterr().out, (out / "replay.html").read_text()
    assert "best possible (belady)" in shown
    assert "points of hit ratio below the best possible" in shown
    assert "at most" not in shown + page
    for text in (shown, page):
        assert "working set 5 keys; the first 3 are not counted" in text
    for name in ("lru", "best possible (belady)", "infinite cache"):
        assert f">{name}<" in page  # beside its line: a single size is a single point
    assert "what no policy goes below, and Belady, who knows the future, reaches" in page


def test_the_command_answers_in_json(capsys: Any) -> None:
    main([str(TRACE), "--policies", "lru", "--sizes", "64KiB", "--json", "--warmup", "100"])
    document = json.loads(capsys.readouterr().out)
    assert document["warmup_accesses"] == 100
    assert document["outcomes"][0]["lookups"] == 1100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], r"missing\.csv: no such file or folder"),
        ([str(TRACE), "--policies", "lru", "--warmup", "1200"], r"--warmup: got 1200"),
        ([str(TRACE), "--policies", "lru", "--sizes", "x"], r"--sizes: got 'x'"),
        ([str(FIXTURES), "--key", "k"], r"--key: names a column of a file"),
        ([str(FIXTURES), "--ttl-s", "k"], r"--ttl-s: names a column of a file"),
        ([str(TRACE), "--type", "mix"], r"--type: got mix; SOURCE is a file"),
        ([str(TRACE), "--config-dir", "/nope"], r"--config-dir: got /nope; expected a folder with"),
        ([str(TRACE), "--config-dir", str(TRACE)], r"--config-dir: got .*cache_keys\.csv"),
        (["--plugins", "json,nope", str(TRACE)], r"--plugins: got 'nope'; expected packages"),
        (["--plugins", "nope.deeper", str(TRACE)], r"--plugins: got 'nope\.deeper'"),
        (["--plugins", "", str(TRACE)], r"--plugins: got ''"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        main(arguments)


@pytest.mark.parametrize("place", ["", "below"])
def test_where_nothing_can_be_written_nothing_is_replayed(
    tmp_path: Path, capsys: Any, place: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match=r"--out: got .*; expected a folder that can be written"):
        main([str(TRACE), "--policies", "lru", "--out", str(file / place)])
    assert capsys.readouterr().out == ""


def test_a_policy_of_ones_own(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    (tmp_path / "own_policies.py").write_text("from capibench.cache.policies.fifo import Fifo\n")
    (tmp_path / "conf" / "cache").mkdir(parents=True)
    (tmp_path / "conf" / "cache" / "mine.yaml").write_text(
        "defaults:\n  - lru\n  - _self_\npolicy:\n  _target_: own_policies.Fifo\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--policies", "mine", "--config-dir", str(tmp_path / "conf"), "--sizes", "50%"]
    main([*options, "--plugins", "own_policies", str(TRACE)])
    assert "mine" in capsys.readouterr().out
