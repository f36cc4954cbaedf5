"""Order, resume and ledger of a study, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from capibench.study import Study, plan_blocks

CELLS = [[f"cache={cache}", f"index={index}", "seed=7"] for cache in "abc" for index in "xy"]


@given(repeats=st.integers(1, 5), order_seed=st.integers(0, 1000))
def test_every_block_holds_every_cell_once(repeats: int, order_seed: int) -> None:
    jobs = plan_blocks(CELLS, repeats, order_seed)
    assert [job.position for job in jobs] == list(range(len(CELLS) * repeats))
    for repeat in range(repeats):
        block = [tuple(job.varied) for job in jobs if job.repeat == repeat]
        assert sorted(block) == sorted(tuple(cell[:2]) for cell in CELLS)
    assert len({job.key for job in jobs}) == len(jobs)
    assert jobs == plan_blocks(CELLS, repeats, order_seed)


def test_blocks_are_ordered_apart() -> None:
    jobs = plan_blocks(CELLS, 4, 0)
    orders = {tuple(tuple(j.varied) for j in jobs if j.repeat == r) for r in range(4)}
    assert len(orders) > 1


def test_keys_tell_fixed_values_apart() -> None:
    """A study resumed with another seed must not take the old runs for its own."""
    other = [[*cell[:2], "seed=8"] for cell in CELLS]
    assert not {j.key for j in plan_blocks(CELLS, 1, 0)} & {j.key for j in plan_blocks(other, 1, 0)}


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
