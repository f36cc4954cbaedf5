"""The command line. Thin and light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import capibench

HELP = """\
Which RAG/LLM serving stack for your load, and why: compose index, cache, batching and
quantization, put the whole under one honest load, compare what was measured.

commands:
  run [CHOICES]          one run:     capibench run cache=ttl index=ivf load.rate_per_s=4
  run -m [CHOICES]       all of them: capibench run -m cache=none,lru 'index=glob(*)'
  study NAME [CHOICES]   a prepared comparison (conf/study/NAME.yaml): capibench study demo
  replay-cache SOURCE    what every cache policy would hit on a trace or in a finished run
  report STUDY_DIR       write the HTML report of a study folder again
  ui                     open MLflow's pages on the recorded runs
  doctor                 what is installed here, which kernels and threads, what is missing

CHOICES are Hydra overrides; `capibench run --help` lists every group and its options.
Shell completion: eval "$(capibench run -sc install=bash)"
"""


def main() -> None:
    """Entry point of the `capibench` command."""
    arguments = sys.argv[1:]
    if "-sc" in arguments or "--shell-completion" in arguments:
        _complete(arguments)
        return
    commands = {
        "run": _run,
        "study": _study,
        "replay-cache": _replay_cache,
        "report": _report,
        "ui": _ui,
        "doctor": _doctor,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    if arguments[0] == "--version":
        print(f"capibench {capibench.__version__}")
        return
    if arguments[0] not in commands:
        _fail(f"unknown command {arguments[0]!r}; known: {', '.join(commands)}")
    commands[arguments[0]](arguments[1:])


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"capibench: {' '.join(message.split())}\n")
    sys.exit(2)


def _run(arguments: list[str]) -> None:
    _hydra(arguments)


def _study(arguments: list[str]) -> None:
    from capibench.config import conf_dir

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: capibench study NAME [CHOICES]\n\nprepared studies:")
        for path in sorted((conf_dir() / "study").glob("*.yaml")):
            comment = path.read_text(encoding="utf-8").splitlines()[1:2]
            print(f"  {path.stem:12} {''.join(comment).lstrip('# ')}")
        return
    name, *rest = arguments
    _hydra(["-m", f"study={name}", *rest])


def _hydra(arguments: list[str]) -> None:
    """Hand over to Hydra; its errors, and ours, end as one line and exit status 2."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from capibench.errors import ConfigError

    sys.argv = [sys.argv[0], *arguments]
    # Otherwise Hydra prints its errors itself, over many lines, with exit status 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _hydra_main()()
    except KeyboardInterrupt:
        sys.stderr.write(
            "capibench: interrupted; finished runs are kept. A study goes on where it stopped "
            "with the same command and hydra.sweep.dir=FOLDER\n"
        )
        sys.exit(130)
    except ConfigError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_one_line(error))
    except ValueError as error:
        # The one mistake that Hydra reports so: GROUP=null.
        if not str(error).startswith("Config group override"):
            raise
        _fail(f"{error}; expected GROUP=CHOICE")


def _hydra_main() -> Any:
    import hydra

    from capibench.config import conf_dir

    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    return decorate(_task)


# Lines of Hydra's messages that mislead here, or only matter to its developers.
_HYDRA_ADVICE = ("Set the environment", "To append to", "Config search path", "provider=")


def _one_line(error: Exception) -> str:
    """Hydra's message without its advice on tracebacks, options after the problem."""
    causes = [str(error)]
    if error.__cause__ is not None:
        causes.append(str(error.__cause__))
    lines = [line.strip() for cause in causes for line in cause.splitlines() if line.strip()]
    seen: list[str] = []
    for line in lines:
        if line not in seen and not line.startswith(_HYDRA_ADVICE):
            seen.append(line)
    message = "; ".join(seen).replace("':;", "':").replace("'.;", "';")
    # Hydra names the key; a person wants to see what was typed.
    typed = [word for word in sys.argv[1:] if f"'{word.partition('=')[0].lstrip('+~')}'" in message]
    return f"{typed[0]}: {message}" if typed else message


def _task(config: Any) -> float | None:
    """What Hydra calls for every job: one run in processes of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from capibench.artifacts import home
    from capibench.errors import ConfigError
    from capibench.launch import launch
    from capibench.records import RunStatus
    from capibench.run_folder import CONFIG_ERROR_EXIT, RunSpec

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    choices = {
        key: str(value)
        for key, value in hydra_config.runtime.choices.items()
        if not key.startswith("hydra/") and value is not None
    }
    study, job = None, None
    overrides = [o for o in hydra_config.overrides.task if not o.startswith("hydra.")]
    if hydra_config.mode == RunMode.MULTIRUN:
        from capibench.study import Study

        study = Study(Path(hydra_config.sweep.dir).resolve())
        job = study.job(run_dir.name)
        sys.stderr.write(f"[{job['position'] + 1}/{job['of']}] {' '.join(job['varied'])}\n")
    spec = RunSpec(
        config={str(key): value for key, value in resolved.items()},
        choices=choices,
        overrides=overrides if job is None else job["varied"],
        study=None if study is None else study.folder.name,
        position=None if job is None else job["position"],
        home=str(home()),
    )
    try:
        document, code = launch(spec, run_dir.resolve())
    except ConfigError as error:  # which Hydra would announce in a line of its own
        _fail(str(error))
    if study is None and code != CONFIG_ERROR_EXIT:
        _print_result(document, run_dir.resolve())
    if study is not None:
        study.record(document)
        sys.stderr.write(f"    {_in_short(document)}\n")
    elif code == CONFIG_ERROR_EXIT:
        _fail(str(document["reason"]))
    elif document["status"] != RunStatus.FINISHED:
        sys.stderr.write(f"capibench: the run {document['status']}: {document['reason']}\n")
        sys.exit(1)
    objective = document["metrics"].get("latency.e2e.p95_ms", {}).get("value")
    return None if objective is None else float(objective)


def _print_result(document: dict[str, Any], run_dir: Path) -> None:
    """One JSON line on standard output: for a person's script, and for other programs."""
    from capibench.measure.headline import headline

    line = {
        "run_dir": str(run_dir),
        "status": document["status"],
        "reason": document["reason"],
        "modeled": document["modeled"],
        "validity": document["validity"] if document["metrics"] else None,
        "metrics": headline(document["metrics"]),
    }
    print(json.dumps(line), flush=True)


def _in_short(document: dict[str, Any]) -> str:
    """How one run of a study ended, in a line."""
    if not document["metrics"]:
        return f"{document['status']}: {document['reason']}"
    p50, p95 = (document["metrics"][f"latency.e2e.{p}_ms"]["value"] for p in ("p50", "p95"))
    if p50 is None:
        return f"{document['status']}, but no request was answered"
    return f"{document['status']}: p50 {_ms(p50)}, p95 {_ms(p95)}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _report(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="capibench report")
    parser.add_argument("study_dir", type=Path, help="folder of a study (outputs/studies/...)")
    options = parser.parse_args(arguments)
    from capibench.artifacts import home
    from capibench.errors import CapiBenchError
    from capibench.report.html import write_report

    folder = options.study_dir
    if not folder.is_dir():  # a study's bare name
        folder = home() / "studies" / folder
    if not folder.is_dir():
        _fail(f"no such folder: {options.study_dir}")
    try:
        print(write_report(folder))
    except CapiBenchError as error:
        _fail(str(error))


def _replay_cache(arguments: list[str]) -> None:
    from capibench.cache.replay.command import main as replay_cache
    from capibench.errors import CapiBenchError

    try:
        replay_cache(arguments)
    except CapiBenchError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _ui(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="capibench ui", description="Serve MLflow's pages.")
    parser.add_argument("--uri", help="tracking store (default: the local file)")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    from capibench.study import tracking_uri

    uri, port = options.uri or tracking_uri(), str(options.port)
    # Its background jobs start seven workers and take over a gigabyte; nothing here needs them.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    print(f"MLflow on http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    os.execv(
        sys.executable,
        [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", port],
    )


def _doctor(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="capibench doctor").parse_args(arguments)
    from capibench.doctor import print_findings

    print_findings()


def _complete(arguments: list[str]) -> None:
    """Hydra's completion, with the subcommand taken out of the line that is being completed."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split(" ")
    if len(words) <= 2 and line:
        print(" ".join(("run", "study", "replay-cache", "report", "ui", "doctor")))
        return
    if line:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    sys.argv = [sys.argv[0], *(word for word in arguments if word not in ("run", "study"))]
    _hydra_main()()


if __name__ == "__main__":
    main()
