"""Finished runs as MLflow runs: the same numbers under the same names as in `run.json`.

The only importer of mlflow, and only when a run is logged: it costs more than a second. Called by
the launching process after a run's files are written, so a tracker that fails loses nothing.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from capibench.records import RunStatus
from capibench.tracking.tracker import TrackingError

_STATUS = {
    RunStatus.FINISHED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.CRASHED: "FAILED",
    RunStatus.SKIPPED: "KILLED",  # MLflow knows no "skipped"; the tag capibench.status says it
}
_PARENT_TAG = "mlflow.parentRunId"
_STUDY_TAG = "capibench.study"
_ROLE_TAG = "capibench.role"
_MAX_PARAM = 6000  # MLflow's bound on a parameter's length
_MAX_PARAMS_PER_CALL = 100
_SQLITE = "sqlite:///"


@dataclass
class MlflowTracker:
    """Logs to `uri`, or to the SQLite file that the launcher names where `uri` is null."""

    uri: str | None
    experiment: str
    timeout_s: int
    max_retries: int

    def __post_init__(self) -> None:
        if not self.experiment:
            raise ValueError("experiment: got ''; expected a name")
        if self.timeout_s < 1:
            raise ValueError(f"timeout_s: got {self.timeout_s}; expected at least 1")
        if self.max_retries < 0:
            raise ValueError(f"max_retries: got {self.max_retries}; expected at least 0")

    def open(self, default_uri: str) -> None:
        """Create store and experiment where they are missing.

        Raises:
            TrackingError: the store cannot be reached or made.
        """
        with self._client(default_uri) as client:
            self._experiment_id(client, self.uri or default_uri)

    def log_run(self, run_dir: Path, default_uri: str) -> None:
        """Log one ended run, below its study's parent run.

        Raises:
            TrackingError: the store cannot be reached, or refused something.
        """
        document = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
        with self._client(default_uri) as client:
            experiment_id = self._experiment_id(client, self.uri or default_uri)
            tags = _tags(document)
            if document["study"] is not None:
                tags[_PARENT_TAG] = _parent_run(client, experiment_id, document)
            run = client.create_run(
                experiment_id,
                start_time=_epoch_ms(document["started_at"]),
                tags=tags,
                run_name=_run_name(document),
            )
            run_id = run.info.run_id
            _log_params(client, run_id, _params(document))
            _log_metrics(client, run_id, document)
            for name in ("run.json", "records.parquet"):
                if (run_dir / name).is_file():
                    client.log_artifact(run_id, str(run_dir / name))
            client.set_terminated(
                run_id, _STATUS[RunStatus(document["status"])], _epoch_ms(document["ended_at"])
            )

    @contextmanager
    def _client(self, default_uri: str) -> Iterator[Any]:
        """An MLflow client whose requests end in bounded time; its errors become ours."""
        environment = {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(self.timeout_s),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(self.max_retries),
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            with warnings.catch_warnings():
                # Deprecations inside mlflow and what it imports are not our user's business.
                warnings.simplefilter("ignore")
                yield _connect(self.uri or default_uri)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _experiment_id(self, client: Any, uri: str) -> str:
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is not None:
            found: str = experiment.experiment_id
            return found
        # Without a location of its own MLflow would put artifacts into the working folder.
        location = None
        if uri.startswith(_SQLITE):
            folder = Path(uri.removeprefix(_SQLITE)).resolve().parent / "mlartifacts"
            location = folder.as_uri()
        created: str = client.create_experiment(
            self.experiment,
            artifact_location=location,
            # Opens with the list of runs; MLflow's own default is a page about LLM traces.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
        return created


class _Client:
    """Every call of MLflow's client, with whatever it raises turned into `TrackingError`."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except Exception as error:
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise TrackingError(f"MLflow at {self._uri}: {name}: {message}") from error

        return call


def _connect(uri: str) -> _Client:
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets its own levels
        logging.getLogger(name).setLevel(logging.ERROR)
    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).resolve().parent.mkdir(parents=True, exist_ok=True)
    try:
        return _Client(MlflowClient(tracking_uri=uri), uri)
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {error}") from error


def _parent_run(client: Any, experiment_id: str, document: Mapping[str, Any]) -> str:
    """The run that stands for the study; made by the first of its runs that is logged."""
    study = str(document["study"])
    quoted = study.replace("'", "\\'")
    found = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{_STUDY_TAG}` = '{quoted}' and tags.`{_ROLE_TAG}` = 'study'",
        max_results=1,
    )
    if found:
        parent: str = found[0].info.run_id
        return parent
    run = client.create_run(
        experiment_id,
        start_time=_epoch_ms(document["started_at"]),
        tags={_STUDY_TAG: study, _ROLE_TAG: "study"},
        run_name=study,
    )
    client.set_terminated(run.info.run_id, "FINISHED")
    created: str = run.info.run_id
    return created


def _run_name(document: Mapping[str, Any]) -> str:
    """What a person recognises in a list: the experiment or name, and the repetition."""
    experiment = document["cell"]["choices"].get("experiment")
    name = experiment.rpartition("/")[2] if experiment else document["name"]
    repeat = document["cell"]["repeat"]
    return f"{name} #{repeat}" if repeat else str(name)


def _tags(document: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        _ROLE_TAG: "run",
        _STUDY_TAG: document["study"],
        "capibench.run_id": document["run_id"],
        "capibench.status": document["status"],
        "capibench.reason": document["reason"],
        "capibench.time": document["time"],
        "capibench.modeled": document["modeled"],
        "capibench.corpus": document["hashes"].get("corpus"),
        "capibench.latency_valid": document["validity"]["latency_valid"],
        "capibench.saturated": document["validity"]["saturated"],
    }
    return {name: _text(value)[:5000] for name, value in tags.items() if value is not None}


def _params(document: Mapping[str, Any]) -> dict[str, str]:
    """Choices by group, and every value of the resolved configuration by its full key."""
    params = {
        group: _text(choice)
        for group, choice in document["cell"]["choices"].items()
        if choice is not None and not group.startswith("hydra")
    }
    for key, value in _flat(document["config"], ""):
        if key.rpartition(".")[2] != "_target_" and key not in params:
            params[key] = _text(value)
    return {name: value[:_MAX_PARAM] for name, value in params.items()}


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in params.items()]
    for begin in range(0, len(entities), _MAX_PARAMS_PER_CALL):
        client.log_batch(run_id, params=entities[begin : begin + _MAX_PARAMS_PER_CALL])


def _log_metrics(client: Any, run_id: str, document: Mapping[str, Any]) -> None:
    """Values under their own names, the ends of their intervals as NAME.low and NAME.high."""
    from mlflow.entities import Metric

    timestamp = _epoch_ms(document["ended_at"])
    entities = []
    for name, metric in document["metrics"].items():
        for suffix, number in (
            ("", metric["value"]),
            (".low", metric["low"]),
            (".high", metric["high"]),
        ):
            if number is not None:
                entities.append(Metric(f"{name}{suffix}", float(number), timestamp, 0))
    if entities:
        client.log_batch(run_id, metrics=entities)


def _epoch_ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)
