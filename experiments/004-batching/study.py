"""Every batching strategy under every load, in virtual time, beside an oracle that knows arrivals.

    python experiments/004-batching/study.py --out reports/batching \\
        --azure ../shared/data/traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv
    python experiments/004-batching/study.py --out quick --machines affine --arrivals poisson \\
        --loads 0.3 0.9 --repeats 2 --requests 500                       # half a minute

Writes cells.csv (a row per machine, arrivals, load, strategy and repeat), bursts.csv, table.md and
the figures, anew after every block. What these hold already is not run again: so a study that was
stopped goes on, and one may be run in parts with the same --out. Nothing in it depends on the
machine that it runs on: the same seed gives the same figures to the last digit. Without --azure
nothing is replayed, and it says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import arrivals
import numpy as np
from cells import Rows, read_rows, write_rows
from figures import write_figures
from machines import MACHINES, Machine, fresh_strategy, offer, strategy_names
from rich.console import Console
from rich.progress import Progress
from tables import write_tables

from capibench.batching.offline import Array
from capibench.batching.oracle import Oracle, oracle
from capibench.batching.simulate import Offered, Outcome, simulate

LOADS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)
ARRIVALS = ("poisson", "bursty", "azure")
CELL = ("mix", "machine", "arrivals", "load", "repeat", "strategy")  # what tells a row from others
BURST = ("machine", "strategy", "repeat", "deadlines_told")
MAX_BURST_REPEATS = 2  # each is as long as many cells
MIN_GOOD, WINDOW_S = 0.95, 5.0  # recovered: so many of each window's requests are good again


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    known = strategy_names()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machines", nargs="+", choices=list(MACHINES), default=list(MACHINES))
    parser.add_argument(
        "--mixes",
        nargs="+",
        choices=["alike", "classes"],
        default=["alike", "classes"],
        help="all requests alike, or five priorities with their own objectives; "
        "classes are offered to single workers only",
    )
    parser.add_argument("--arrivals", nargs="+", choices=ARRIVALS, default=list(ARRIVALS))
    parser.add_argument("--strategies", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument(
        "--loads",
        nargs="+",
        type=float,
        default=list(LOADS),
        help="offered rate over the best rate of full batches",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000, help="per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--azure", type=Path, default=None, help="CSV of the trace to be replayed")
    parser.add_argument("--no-bursts", action="store_true", help="leave out the recovery part")
    chosen = parser.parse_args(arguments)
    if "greedy" not in chosen.strategies:
        parser.error("--strategies: expected greedy among them; the others are compared with it")
    if min(chosen.loads) <= 0 or chosen.repeats < 1 or chosen.requests < 2:
        parser.error("--loads, --repeats, --requests: expected numbers above 0")
    return chosen


def main() -> None:
    chosen = parse()
    console = Console(stderr=True)
    kinds = [kind for kind in chosen.arrivals if kind != "azure" or chosen.azure is not None]
    if len(kinds) < len(chosen.arrivals):
        console.print("azure: left out, no --azure given")
    chosen.out.mkdir(parents=True, exist_ok=True)
    blocks = [
        (mix, machine, kind)
        for mix in chosen.mixes
        for machine in (MACHINES[name]() for name in chosen.machines)
        if mix == "alike" or len(machine.worker_speeds) == 1
        for kind in kinds
    ]
    cells, bursts = (read_rows(chosen.out / f"{name}.csv") for name in ("cells", "bursts"))
    refuse_others(cells, chosen)
    done = {tuple(row[key] for key in CELL) for row in cells}  # and not to be run again
    with Progress(console=console) as bar:
        task = bar.add_task("", total=len(blocks) * len(chosen.loads) * chosen.repeats)
        for mix, machine, kind in blocks:
            bar.update(task, description=f"{mix} {machine.name} {kind}")
            for load in chosen.loads:
                for repeat in range(chosen.repeats):
                    here = (mix, machine.name, kind, load, repeat)
                    wanted = [name for name in chosen.strategies if (*here, name) not in done]
                    if wanted:
                        cells += cell_rows(chosen, wanted, mix, machine, kind, load, repeat)
                    bar.advance(task)
                write_rows(cells, chosen.out / "cells.csv")
            write(chosen.out, cells, bursts)
        done = {tuple(row[key] for key in BURST) for row in bursts}
        for name in [] if chosen.no_bursts else chosen.machines:
            bar.update(task, description=f"burst {name}")
            for row in burst_rows(chosen, MACHINES[name](), done):
                bursts.append(row)
                write_rows(bursts, chosen.out / "bursts.csv")
        write(chosen.out, cells, bursts)
    sys.stdout.write(f"{chosen.out / 'table.md'}\n")


def refuse_others(cells: Rows, chosen: argparse.Namespace) -> None:
    """Rows of another study in the same place would be taken for this one's."""
    for row in cells:
        if (row["offered"], row["seed"]) != (chosen.requests, chosen.seed):
            raise SystemExit(
                f"--out: {chosen.out} holds {row['offered']} requests a cell with seed "
                f"{row['seed']}; expected those of --requests and --seed, or an empty folder"
            )


def cell_rows(
    chosen: argparse.Namespace,
    strategies: Sequence[str],
    mix: str,
    machine: Machine,
    kind: str,
    load: float,
    repeat: int,
) -> Iterator[dict[str, Any]]:
    """One offered load, the same for all of `strategies`, and what each made of it."""
    # Neither load nor strategy is part of the seed: all see one pattern, faster or slower.
    rng = np.random.default_rng([chosen.seed, repeat])
    times = pattern(chosen, kind, repeat, rng)
    offered = offer(
        arrivals.at_rate(times, load * machine.capacity_per_s), machine, mix == "classes", rng
    )
    bounds: dict[bool, Oracle] = {}
    for name in strategies:
        strategy = fresh_strategy(name, machine)
        joins = strategy.joins_running
        if joins not in bounds:
            bounds[joins] = oracle(
                offered.arrival_s,
                offered.due_s,
                machine.service,
                machine.worker_speeds,
                joins,
                known=bounds.get(not joins),
            )
        outcome = simulate(offered, strategy, machine.service, machine.worker_speeds)
        yield {
            "mix": mix,
            "machine": machine.name,
            "arrivals": kind,
            "load": load,
            "strategy": name,
            "repeat": repeat,
            "seed": chosen.seed,
            **figures_of(outcome, bounds[joins]),
        }


def pattern(chosen: argparse.Namespace, kind: str, repeat: int, rng: np.random.Generator) -> Array:
    if kind == "azure":
        return arrivals.recorded(chosen.azure, chosen.requests, repeat)
    return {"poisson": arrivals.poisson, "bursty": arrivals.bursty}[kind](chosen.requests, rng)


def figures_of(outcome: Outcome, bound: Oracle) -> dict[str, Any]:
    """Counts first: latency of those answered never stands without how many were."""
    offered, stats = outcome.offered, outcome.stats
    seconds = float(offered.arrival_s[-1] - offered.arrival_s[0])
    latency_ms = 1000 * outcome.latency_s
    by_class = {
        f"good.{number}": float(outcome.good[offered.priority == number].mean())
        for number in sorted(set(offered.priority.tolist()))
    }
    return {
        "offered": bound.num_offered,
        "answered": int(outcome.answered.sum()),
        "good": outcome.num_good,
        "oracle_upper_bound": bound.upper_bound,
        "oracle_best_found": bound.best_found,
        "oracle_exact": bound.exact is not None,
        "goodput_per_s": outcome.num_good / seconds,
        **{
            f"latency_p{q}_ms": float(np.percentile(latency_ms, q)) if len(latency_ms) else None
            for q in (50, 95, 99)
        },
        "mean_batch_size": stats.mean_batch_size,
        "efficiency": stats.efficiency,
        **by_class,
    }


def burst_rows(
    chosen: argparse.Namespace, machine: Machine, done: set[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """Half the capacity, ten times that for five seconds, half again; deadlines told or not. Those
    in `done` are left out."""
    for repeat in range(min(chosen.repeats, MAX_BURST_REPEATS)):
        rng = np.random.default_rng([chosen.seed, repeat])
        times_s = arrivals.burst(machine.capacity_per_s, rng)
        offered: Offered = offer(times_s, machine, False, rng)
        for name in (name for name in chosen.strategies if name != "none"):
            for told in (True, False):
                if (machine.name, name, repeat, told) in done:
                    continue
                strategy = fresh_strategy(name, machine)
                outcome = simulate(
                    offered, strategy, machine.service, machine.worker_speeds, tell_deadlines=told
                )
                yield {
                    "machine": machine.name,
                    "strategy": name,
                    "repeat": repeat,
                    "deadlines_told": told,
                    "recovery_s": outcome.recovery_s(
                        arrivals.CALM_S + arrivals.BURST_S, WINDOW_S, MIN_GOOD
                    ),
                    "good_share": outcome.num_good / len(times_s),
                }


def write(out: Path, cells: Rows, bursts: Rows) -> None:
    write_rows(cells, out / "cells.csv")
    write_rows(bursts, out / "bursts.csv")
    write_tables(cells, bursts, out / "table.md")
    write_figures(cells, out)


if __name__ == "__main__":
    main()
