"""Order, resume and ledger of a study, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from capibench.study import Study, StudyCell, plan_blocks


def cells(seed: int) -> list[StudyCell]:
    return [
        StudyCell(
            [f"cache={cache}", f"index={index}", f"seed={seed}"],
            {"cache": cache, "index": index, "seed": seed},
        )
        for cache in "abc"
        for index in "xy"
    ]


CELLS = cells(seed=7)


@given(repeats=st.integers(1, 5), order_seed=st.integers(0, 1000))
def test_every_block_holds_every_cell_once(repeats: int, order_seed: int) -> None:
    jobs = plan_blocks(CELLS, repeats, order_seed)
    assert [job.position for job in jobs] == list(range(len(CELLS) * repeats))
    for repeat in range(repeats):
        block = [tuple(job.varied) for job in jobs if job.repeat == repeat]
        assert sorted(block) == sorted(tuple(cell.overrides[:2]) for cell in CELLS)
    assert len({job.key for job in jobs}) == len(jobs)
    assert jobs == plan_blocks(CELLS, repeats, order_seed)


def test_blocks_are_ordered_apart() -> None:
    jobs = plan_blocks(CELLS, 4, 0)
    orders = {tuple(tuple(j.varied) for j in jobs if j.repeat == r) for r in range(4)}
    assert len(orders) > 1


def test_keys_tell_fixed_values_apart() -> None:
    """A study resumed with another seed must not take the old runs for its own."""
    other = plan_blocks(cells(seed=8), 1, 0)
    assert not {job.key for job in plan_blocks(CELLS, 1, 0)} & {job.key for job in other}


def ended(key: str, status: str) -> dict[str, Any]:
    return {
        "run_id": key,
        "status": status,
        "reason": None,
        "cell": {"choices": {}},
        "ended_at": "2026-01-01T00:00:00+00:00",
    }


def test_only_finished_and_skipped_runs_are_not_run_again(tmp_path: Path) -> None:
    study = Study(tmp_path)
    assert study.finished() == set()
    for key, status in (
        ("a", "finished"), ("b", "crashed"), ("c", "skipped"), ("d", "failed"), ("b", "finished"),
        ("e", "finished"), ("e", "crashed"),
    ):  # fmt: skip
        study.record(ended(key, status))
    assert study.finished() == {"a", "b", "c"}
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == list("abcdbee")


def test_a_torn_ledger_line_costs_that_line_only(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.record(ended("a", "finished"))
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"key": "b", "sta')  # the launcher died here
    assert study.finished() == {"a"}
    study.record(ended("c", "finished"))
    assert study.finished() == {"a", "c"}
