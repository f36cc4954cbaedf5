"""What the batching study reports with: arrivals, machines, rows, intervals, acceptance lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

FOLDER = Path(__file__).parents[2] / "experiments" / "004-batching"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "traces" / "azure_made.csv"
MODULES = ("arrivals", "machines", "cells", "summary", "tables")


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """Its modules, which import each other by their bare names."""
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    sys.path.insert(0, str(FOLDER))
    try:
        modules: dict[str, ModuleType] = {name: import_module(name) for name in MODULES}
        yield SimpleNamespace(**modules)
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
            other = before[name]
            if other is not None:
                sys.modules[name] = other


def test_arrivals_are_in_order_at_the_rate_that_was_asked_for(study: Any) -> None:
    rng = np.random.default_rng(1)
    for times in (
        study.arrivals.poisson(4000, rng),
        study.arrivals.bursty(4000, rng),
        study.arrivals.recorded(FIXTURE, 20, 1),
    ):
        at_s = study.arrivals.at_rate(times, 50.0)
        assert at_s[0] == 0.0
        assert (np.diff(at_s) >= 0).all()
        assert len(at_s) / at_s[-1] == pytest.approx(50.0)


def test_bursty_gaps_have_the_stated_variation_and_poisson_gaps_that_of_chance(study: Any) -> None:
    rng = np.random.default_rng(2)
    for make, variation in ((study.arrivals.poisson, 1.0), (study.arrivals.bursty, 4.0)):
        gaps = np.diff(make(100_000, rng))
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)


def test_stretches_of_a_trace_are_its_requests_one_after_another(study: Any) -> None:
    whole = study.arrivals.recorded(FIXTURE, 40, 0)
    parts = [study.arrivals.recorded(FIXTURE, 20, part) for part in (0, 1)]
    assert np.array_equal(np.concatenate(parts), whole)
    with pytest.raises(ValueError, match=r"azure_made\.csv ends within stretch 0 of 1000000"):
        study.arrivals.recorded(FIXTURE, 1_000_000, 0)


def test_a_burst_is_ten_times_what_is_before_and_after_it(study: Any) -> None:
    times = study.arrivals.burst(400.0, np.random.default_rng(3))
    began, ended = study.arrivals.CALM_S, study.arrivals.CALM_S + study.arrivals.BURST_S
    assert (times < began).sum() / began == pytest.approx(200.0, rel=0.1)
    inside = ((times >= began) & (times < ended)).sum() / study.arrivals.BURST_S
    assert inside == pytest.approx(2000.0, rel=0.1)
    assert (times >= ended).sum() / study.arrivals.AFTER_S == pytest.approx(200.0, rel=0.1)


def test_machines_take_what_they_say_and_offers_promise_what_is_written(study: Any) -> None:
    affine = study.machines.MACHINES["affine"]()
    assert affine.service.batch_s[31] == pytest.approx(0.074)
    assert affine.capacity_per_s == pytest.approx(32 / 0.074)
    three = study.machines.MACHINES["three_workers"]()
    assert three.capacity_per_s == pytest.approx(2.25 * 32 / 0.074)
    engine = study.machines.choice("engine", "modeled")
    nano = study.machines.MACHINES["nano"]().service
    tokens = study.machines.PROMPT_TOKENS
    assert nano.batch_s[0] == pytest.approx(
        engine["base_s"] + engine["prefill_s_per_token"] * tokens + 31 * engine["decode_step_s"][1]
    )
    times = np.linspace(0, 1, 1000)
    offered = study.machines.offer(times, affine, True, np.random.default_rng(4))
    for number, factor in study.machines.OBJECTIVES.items():
        assert offered.objective_s[offered.priority == number] == pytest.approx(factor * 0.074)
    assert (offered.priority == 3).mean() == pytest.approx(0.5, abs=0.05)


def test_rows_come_back_as_they_were_written(study: Any, tmp_path: Path) -> None:
    rows = [
        {"a": 1, "b": 0.1 + 0.2, "c": "x, y", "d": True},
        {"a": -3, "b": float("inf"), "c": "z", "d": False, "e": 1e-300},
    ]
    study.cells.write_rows(rows, tmp_path / "rows.csv")
    assert study.cells.read_rows(tmp_path / "rows.csv") == [{**rows[0], "e": None}, rows[1]]
    study.cells.write_rows([], tmp_path / "none.csv")
    assert study.cells.read_rows(tmp_path / "none.csv") == []


def test_intervals_are_those_of_student(study: Any) -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    found = study.summary.interval(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=3.75, scale=scipy_stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((3.75, low, high))
    assert study.summary.interval([1.0, 3.0]) == study.summary.Interval(2.0, None, None)


def row(strategy: str, good: int, repeat: int, load: float = 1.0) -> dict[str, Any]:
    return {
        "mix": "alike", "machine": "affine", "arrivals": "poisson", "load": load,
        "strategy": strategy, "repeat": repeat, "offered": 100, "answered": good, "good": good,
        "oracle_upper_bound": 90, "oracle_best_found": 90, "oracle_exact": True,
        "latency_p50_ms": 1.0, "latency_p99_ms": 2.0, "mean_batch_size": 3.0,
    }  # fmt: skip


def test_differences_are_taken_repeat_by_repeat(study: Any) -> None:
    greedy = [row("greedy", good, repeat) for repeat, good in enumerate((20, 50, 80))]
    better = [row("adaptive", good, repeat) for repeat, good in enumerate((22, 52, 82))]
    assert study.summary.is_tie(study.summary.against(better, greedy)) is False
    same = [row("adaptive", good, repeat) for repeat, good in enumerate((22, 50, 78))]
    assert study.summary.is_tie(study.summary.against(same, greedy)) is True
    assert study.summary.is_tie(study.summary.against(better[:2], greedy[:2])) is None


def test_a_study_that_has_run_in_part_has_a_table_too(study: Any, tmp_path: Path) -> None:
    cells = [row("greedy", 70, 0), row("greedy", 80, 0, 0.5), row("adaptive", 80, 0, 0.5)]
    study.tables.write_tables(cells, [], tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    assert "| 1 | **77.8** | – |" in text
    assert "| 0.5 | **88.9** | **88.9** |" in text


def test_lines_that_are_not_met_are_named_and_others_not(study: Any, tmp_path: Path) -> None:
    burst = {"machine": "affine", "strategy": "greedy", "repeat": 0, "good_share": 0.5}
    cells = [row("greedy", 70, 0), row("adaptive", 30, 0)]
    cells += [row("greedy", 85, 0, 0.5), row("adaptive", 85, 0, 0.5)]
    bursts = [
        {**burst, "deadlines_told": told, "recovery_s": recovery_s}
        for told, recovery_s in ((True, None), (False, 55.0))
    ]
    study.tables.write_tables(cells, bursts, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().partition("## acceptance")[2].split("\n- ")[1:]
    assert len(lines) == 3
    assert "1.0): the best, greedy, has 77.8% of the bound" in lines[0]
    assert "adaptive has 42.9% of greedy" in lines[1]
    assert "deadlines told, repeat 0: recovery None" in lines[2]
