"""`capibench replay-cache`: what every policy would have hit on a trace or in a finished run."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from capibench.cache.replay.choices import capacities, load_policies, policy_names
from capibench.cache.replay.output import print_tables, to_json_line, write_files
from capibench.cache.replay.replay import replay
from capibench.cache.replay.run_log import read_run
from capibench.cache.replay.trace import Columns, KeyTrace, read_key_trace
from capibench.errors import ConfigError, DataError

DESCRIPTION = """\
Replay a stream of keys through cache policies, without models and values.

SOURCE is a trace (.csv, .jsonl or .parquet; one access a row, or a list of keys) or the folder of a
run. Columns that are named key, size, cost_s, time and ttl_s are found; others are named by options
(nested JSON with dots: --key hash_ids.passages_ids). Times are seconds or ISO 8601 timestamps.
Sizes of the cache are bytes or shares of the working set.

Beside the policies stands what knows the future, and which accesses come after the warm-up:
  best possible (belady)  entries have one size and never go stale: no policy hits more, one as much
  possible at most        otherwise, and for seconds: no policy has more, and perhaps none as much
  belady (no bound)       there: keeps what is asked for soonest, whatever its size
  infinite cache          never evicts; where entries go stale, evicting may hit more
"""


def main(arguments: list[str]) -> None:
    """Read, replay, print; files with --out.

    Raises:
        ConfigError, DataError: what is wrong with the arguments or the source, in one line.
    """
    options = _parser().parse_args(arguments)
    _check(options)
    trace = _trace(options)
    sizes = capacities(options.sizes, trace.working_set_bytes)
    specs = options.policies.split(",") if options.policies else policy_names()
    policies = load_policies(specs, options.config_dir, options.plugins)
    if options.out is not None:
        _make_writable(options.out)
    console = Console(stderr=True)
    with Progress(
        TextColumn("  replaying {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=2,
        disable=not console.is_terminal,
    ) as progress:
        total = len(trace) * len(policies) * len(sizes)
        task = progress.add_task(trace.name, total=total)
        try:
            replayed = replay(
                trace,
                policies,
                sizes,
                trace.num_warmup if options.warmup is None else options.warmup,
                lambda num_accesses: progress.advance(task, num_accesses),
            )
        except ValueError as error:
            raise ConfigError("", f"--{error}") from error
    if options.json:
        sys.stdout.write(to_json_line(replayed) + "\n")
    else:
        print_tables(replayed, Console())
    if options.out is not None:
        for path in write_files(replayed, options.out):
            sys.stderr.write(f"wrote {path}\n")


def _trace(options: argparse.Namespace) -> KeyTrace:
    source: Path = options.source
    columns = Columns(
        key=options.key,
        size=options.size,
        cost_s=options.cost_s,
        time=options.time,
        ttl_s=options.ttl_s,
    )
    if source.is_dir():
        for role, name in vars(columns).items():
            if name is not None:
                option = "--" + role.replace("_", "-")
                raise ConfigError(option, "names a column of a file; SOURCE is the folder of a run")
        return read_run(source, options.type or "query_result")
    if not source.is_file():
        raise DataError(f"{source}: no such file or folder")
    if options.type is not None:
        raise ConfigError("--type", f"got {options.type}; SOURCE is a file, not a run's folder")
    return read_key_trace(source, columns)


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be ignored otherwise."""
    config_dir: Path | None = options.config_dir
    if config_dir is not None and not (config_dir / "cache").is_dir():
        raise ConfigError(
            "--config-dir", f"got {config_dir}; expected a folder with cache/NAME.yaml"
        )
    for name in options.plugins:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise ConfigError("--plugins", f"got {name!r}; expected packages that can be imported")


def _make_writable(folder: Path) -> None:
    """Before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"got {folder}; expected a folder that can be written ({error.strerror})"
        raise ConfigError("--out", problem) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capibench replay-cache",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="trace file, or folder of a run")
    add(
        "--policies",
        help="comma-separated choices of the cache group, each with changed values after colons "
        "(w_tinylfu:window_share=0.2); default: all",
    )
    add("--sizes", default="1%,2%,5%,10%,20%", help="bytes (64MiB) or shares; default: %(default)s")
    add(
        "--warmup",
        type=int,
        help="accesses that fill the caches and are not counted; default: those of a run's warm-up",
    )
    add(
        "--type",
        choices=("query_result", "embedding", "mix"),
        help="which look-ups of a run; mix: all of them in one cache (default: query_result)",
    )
    for name in ("key", "size", "cost-s", "time", "ttl-s"):
        add(f"--{name}", metavar="COLUMN", help=f"column of a trace with its {name}")
    add("--out", type=Path, metavar="FOLDER", help="write replay.json, replay.csv, replay.html")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--config-dir", type=Path, help="configuration tree with policies of your own")
    add(
        "--plugins",
        type=lambda names: names.split(","),
        default=[],
        help="comma-separated packages from which they may come",
    )
    return parser
