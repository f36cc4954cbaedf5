"""What the tuner's five strategies choose, and how long they take to.

    OMP_NUM_THREADS=1 python experiments/006-index/study.py --out reports/index
    OMP_NUM_THREADS=1 python experiments/006-index/study.py --out quick --data clustered-5000 \\
        --strategies speed memory --tuning-s 20                          # under a minute

Writes, for each data set, batch size and strategy, the tuner's whole record (JSON) and its points
(CSV). Whether the choices hold, judge.py measures on queries that nothing was chosen by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import faiss
from data_sets import DataSet, data_sets
from omegaconf import OmegaConf
from rich.console import Console

from capibench.config import build, conf_dir
from capibench.index.metric import Metric
from capibench.index.tuner.candidates import Serving
from capibench.index.tuner.tune import tune
from capibench.measure import environment, noise

DATA = ("docs-10000", "docs-50000", "gaussian-50000", "clustered-50000")
STRATEGIES = ("speed", "accuracy", "memory", "balanced", "adaptive")
K = 10


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(DATA), help="docs-N, gaussian-N, ...")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1], help="each is a contest of its own"
    )
    parser.add_argument("--tuning-s", type=float, default=None, help="default: each strategy's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    chosen = parse()
    console = Console(stderr=True)
    faiss.omp_set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for data in data_sets(chosen.data, chosen.seed, console):
        for batch_size in chosen.batch_sizes:
            for strategy in chosen.strategies:
                record(data, batch_size, strategy, chosen, console)


def record(
    data: DataSet, batch_size: int, strategy: str, chosen: argparse.Namespace, console: Console
) -> None:
    """Tune and write it down."""
    settings = settings_of(strategy)
    if chosen.tuning_s is not None:
        settings["tuning_s"] = chosen.tuning_s
    before_s = noise.calibrate()
    tuned = tune(
        build(settings, "index_tuning"),
        data.vectors,
        data.tune,
        data.verify,
        K,
        Serving(batch_size, Metric.COSINE, "float32", 0.2),
        None,
        lambda doing: console.print(f"{data.name}, {batch_size} at once, {strategy}: {doing}"),
    )
    drift = noise.drift(before_s, noise.calibrate())
    content = {
        "data": data.name,
        "real": data.real,
        "seed": chosen.seed,
        "batch_size": batch_size,
        "strategy": strategy,
        "drift": drift,
        **tuned.to_json(),
        "environment": environment.describe(),
    }
    name = f"{data.name}-{batch_size}-{strategy}"
    (chosen.out / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (chosen.out / f"{name}.csv").write_text(tuned.to_csv(), encoding="utf-8")
    console.print(f"{name}: {tuned.found.verdict.chosen.name} in {tuned.seconds:.1f} s")


def settings_of(strategy: str) -> dict[str, object]:
    """A choice of `conf/index_tuning`, as it is."""
    loaded = OmegaConf.to_container(
        OmegaConf.load(conf_dir() / "index_tuning" / f"{strategy}.yaml")
    )
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


if __name__ == "__main__":
    main()
