"""MLflow shows the same numbers as run.json, and failing to reach it is one clear error."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capibench.tracking.mlflow import MlflowTracker
from capibench.tracking.tracker import TrackingError

STUDY = Path(__file__).parents[1] / "fixtures" / "study"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], Any]:
    """Three runs of the fixture in a fresh store, and everything that the store then holds."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'store' / 'mlflow.db'}"
    tracker = MlflowTracker(uri=None, experiment="fixture", timeout_s=5, max_retries=0)
    tracker.open(uri)
    for name in ("baseline-r0", "everything-r0", "broken-r0", "impossible-r0"):
        tracker.log_run(STUDY / name, uri)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fixture")
    assert experiment is not None
    return folder, list(client.search_runs([experiment.experiment_id])), client


def _run(runs: list[Any], run_id: str) -> Any:
    return next(run for run in runs if run.data.tags.get("capibench.run_id") == run_id)


@pytest.mark.parametrize("run_id", ["baseline-r0", "everything-r0"])
def test_every_metric_equals_run_json(logged: tuple[Path, list[Any], Any], run_id: str) -> None:
    document = json.loads((STUDY / run_id / "run.json").read_text())
    expected = {
        f"{name}{suffix}": metric[key]
        for name, metric in document["metrics"].items()
        for suffix, key in (("", "value"), (".low", "low"), (".high", "high"))
        if metric[key] is not None
    }
    assert _run(logged[1], run_id).data.metrics == expected


def test_choices_and_values_are_parameters(logged: tuple[Path, list[Any], Any]) -> None:
    params = _run(logged[1], "everything-r0").data.params
    assert params["cache"] == "lru"
    assert params["quantization"] == "int8"
    assert params["load.rate_per_s"] == "6.0"
    assert params["seed"] == "1"


def test_runs_stand_below_their_study(logged: tuple[Path, list[Any], Any]) -> None:
    parents = [run for run in logged[1] if run.data.tags.get("capibench.role") == "study"]
    assert len(parents) == 1
    children = [run for run in logged[1] if run not in parents]
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}


def test_status_says_how_a_run_ended(logged: tuple[Path, list[Any], Any]) -> None:
    assert _run(logged[1], "baseline-r0").info.status == "FINISHED"
    broken = _run(logged[1], "broken-r0")
    assert broken.info.status == "FAILED"
    assert "made to fail" in broken.data.tags["capibench.reason"]
    assert _run(logged[1], "impossible-r0").data.tags["capibench.status"] == "skipped"


def test_files_are_kept_beside_the_store(logged: tuple[Path, list[Any], Any]) -> None:
    folder, runs, client = logged
    run = _run(runs, "baseline-r0")
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"run.json", "records.parquet"}
    assert (folder / "store" / "mlartifacts").is_dir()


def test_unreachable_server_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        tracker = MlflowTracker(uri=uri, experiment="x", timeout_s=1, max_retries=0)
        shutil.copytree(STUDY / "baseline-r0", tmp_path / "run")
        with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1"):
            tracker.log_run(tmp_path / "run", "sqlite:///never-used.db")
    assert (tmp_path / "run" / "records.parquet").is_file()


def test_both_choices_are_built(choice: Callable[..., Any], tmp_path: Path) -> None:
    choice("tracking", "none").log_run(tmp_path, "sqlite:///never-used.db")
    assert choice("tracking", "mlflow").experiment == "capibench"
    with pytest.raises(ValueError, match=r"tracking.timeout_s: got 0; expected at least 1"):
        choice("tracking", "mlflow", timeout_s=0)
