"""A simulated run is exact: the same seed, the same bytes, in whatever process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from capibench.records import STAGES

VIRTUAL = ["time=virtual", "tracking=none", "corpus.max_passages=300", "load.num_requests=400"]


def records(result: dict[str, object]) -> Path:
    return Path(str(result["run_dir"])) / "records.parquet"


def test_same_seed_same_bytes_in_two_processes(capibench: Callable[..., object]) -> None:
    first, second, other = (
        capibench("run", *VIRTUAL, f"seed={seed}", PYTHONHASHSEED=hash_seed)
        for seed, hash_seed in ((7, "1"), (7, "2"), (8, "1"))
    )
    assert first.code == 0, first.err
    bytes_of = [records(done.result).read_bytes() for done in (first, second, other)]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]


def test_modeled_numbers_are_labelled_and_claim_no_quality(run_here: Callable[..., object]) -> None:
    document = run_here(*VIRTUAL, small=False).document
    assert document["modeled"] is True
    for name, metric in document["metrics"].items():
        if name.startswith("quality.") and name != "quality.bm25_hit_at_k":
            assert metric["value"] is None, name


def test_seed_fixes_the_work_whatever_the_stack(run_here: Callable[..., object]) -> None:
    plain = run_here(*VIRTUAL, "cache=none", small=False)
    cached = run_here(*VIRTUAL, "cache=lru", "batching=time_based", small=False)
    columns = ["request_id", "question_id", "priority", "max_new_tokens", "intended_s", "phase"]
    pd.testing.assert_frame_equal(plain.rows[columns], cached.rows[columns])
    assert plain.document["hashes"]["plan"] == cached.document["hashes"]["plan"]


@pytest.mark.parametrize("choices", [["cache=none"], ["cache=lru", "batching=time_based"]])
def test_stage_times_add_up_to_the_end_to_end_time(
    choices: list[str], run_here: Callable[..., object]
) -> None:
    rows = run_here(*VIRTUAL, "load.rate_per_s=50", *choices, small=False).rows
    sums_s = rows[[f"{stage}_s" for stage in STAGES]].sum(axis=1)
    e2e_s = rows.done_s - rows.intended_s
    assert (e2e_s > 0).any()  # an answer from the cache takes no virtual time
    assert (e2e_s - sums_s).abs().max() < 1e-6


@pytest.mark.parametrize("cache", ["lru", "ttl"])
def test_a_cache_answers_repeated_questions(cache: str, run_here: Callable[..., object]) -> None:
    outcome = run_here(*VIRTUAL, f"cache={cache}", "load.zipf_exponent=1.2", small=False)
    rows = outcome.rows
    hits = rows[rows.result_cache == "l1"]
    assert len(hits) > 20
    first_answers = rows[rows.result_cache == "miss"].groupby("question_id").answer.first()
    assert (hits.answer == hits.question_id.map(first_answers)).all()
    assert (hits.done_s - hits.sent_s).max() < rows[rows.served_by == "engine"].generate_s.min()


def test_multirun_over_two_groups(capibench: Callable[..., object], tmp_path: Path) -> None:
    done = capibench(
        "run", "-m", "cache=glob([lru,none])", "load.rate_per_s=range(10,30,10)",
        "time=virtual",
        "tracking=none", "corpus.max_passages=300", "load.num_requests=60",
        f"hydra.sweep.dir={tmp_path / 'study'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.result["runs"] == {"finished": 4}
    assert Path(done.result["report"]).is_file()
    documents = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("*/run.json")]
    cells = {(d["cell"]["choices"]["cache"], d["config"]["load"]["rate_per_s"]) for d in documents}
    assert cells == {(cache, rate) for cache in ("lru", "none") for rate in (10, 20)}
    assert sorted(d["cell"]["position"] for d in documents) == list(range(4))
