"""What the tuner's five strategies choose, how long they take, and whether the choice holds.

    OMP_NUM_THREADS=1 python experiments/006-index/study.py --out reports/index
    OMP_NUM_THREADS=1 python experiments/006-index/study.py --out quick --data clustered-5000 \\
        --strategies speed memory --tuning-s 20                          # under a minute

Writes, for each data set, batch size and strategy, the tuner's whole record (JSON) and its points
(CSV); picks.csv with one row per pick, judged on fresh queries beside calibrated exact search,
timed in interleaved rounds; table.md; and verdicts.md, the promises one by one.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from data_sets import DataSet, data_sets
from omegaconf import OmegaConf
from rich.console import Console

from capibench.config import build, conf_dir
from capibench.index.metric import Metric
from capibench.index.optimizer.exam import Contents, Exam
from capibench.index.tuner.candidates import Serving, built, node_of_arm
from capibench.index.tuner.tune import tune
from capibench.index.tuner.tuned import Tuned
from capibench.index.tuning.points import Arm
from capibench.measure import environment, noise, stats

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
    rows: list[dict[str, Any]] = []
    for data in data_sets(chosen.data, chosen.seed, console):
        for batch_size in chosen.batch_sizes:
            rows += picks(data, batch_size, chosen, console)
            write(chosen.out, rows)
    (chosen.out / "environment.json").write_text(json.dumps(environment.describe(), indent=1))


def picks(
    data: DataSet, batch_size: int, chosen: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Tune by every strategy, then judge all picks and exact search together."""
    serving = Serving(batch_size, Metric.COSINE, "float32", 0.2)
    tuned: dict[str, Tuned] = {}
    for strategy in chosen.strategies:
        loaded = OmegaConf.load(conf_dir() / "index_tuning" / f"{strategy}.yaml")
        settings = OmegaConf.to_container(loaded)
        assert isinstance(settings, dict)
        if chosen.tuning_s is not None:
            settings["tuning_s"] = chosen.tuning_s
        tuned[strategy] = tune(
            build(settings, "index_tuning"),
            data.vectors,
            data.tune,
            data.verify,
            K,
            serving,
            None,
            lambda doing, strategy=strategy: console.print(f"{data.name} {strategy}: {doing}"),
        )
        name = f"{data.name}-{batch_size}-{strategy}"
        record = json.dumps(tuned[strategy].to_json(), indent=1)
        (chosen.out / f"{name}.json").write_text(record, encoding="utf-8")
        (chosen.out / f"{name}.csv").write_text(tuned[strategy].to_csv(), encoding="utf-8")
    return judged(data, batch_size, serving, tuned, chosen.seed)


def judged(
    data: DataSet, batch_size: int, serving: Serving, tuned: dict[str, Tuned], seed: int
) -> list[dict[str, Any]]:
    ids = np.arange(len(data.vectors), dtype=np.int64)
    indexes = {"exact": built(node_of_arm(Arm("flat", "flat", ()), serving))}
    indexes |= {strategy: built(one.node) for strategy, one in tuned.items()}
    for index in indexes.values():
        index.build(data.vectors, ids)
    exam = Exam.of(Contents(ids, data.vectors), data.fresh, K, serving.metric)
    before_s = noise.calibrate()
    points = exam.points(indexes, seed)
    drift = noise.drift(before_s, noise.calibrate())
    rows = []
    for strategy, one in tuned.items():
        point, exact = points[strategy], points["exact"]
        times = stats.percentile(exact.seconds / point.seconds, 0.5)
        mean, low, high = point.recall.interval()
        rows.append(
            {
                "data": data.name,
                "real": data.real,
                "batch_size": batch_size,
                "strategy": strategy,
                "pick": one.found.verdict.chosen.name,
                "met": one.found.verdict.met,
                "recall": mean,
                "recall_low": low,
                "recall_high": high,
                "times_as_fast_as_flat": times.value,
                "times_low": times.low,
                "times_high": times.high,
                "ms": point.latency_s * 1e3,
                "flat_ms": exact.latency_s * 1e3,
                "memory_bytes": point.memory_bytes,
                "flat_memory_bytes": exact.memory_bytes,
                "build_s": point.build_s,
                "tuning_s": one.seconds,
                "ties": "; ".join(p.name for p in one.found.verdict.ties),
                "reasons": "; ".join(one.reasons),
                "features": json.dumps(None if one.features is None else asdict(one.features)),
                "drift": drift,
            }
        )
    return rows


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """All that is known so far."""
    with (out / "picks.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| data | batch | strategy | pick | recall@10 | x Flat | MB | Flat MB | tuning s |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['data']}{'' if r['real'] else ' (made)'} | {r['batch_size']} | {r['strategy']} | "
        f"{r['pick']} | {r['recall']:.4f} [{r['recall_low']:.4f}, {r['recall_high']:.4f}] | "
        f"{r['times_as_fast_as_flat']:.1f} | {r['memory_bytes'] / 1e6:.2f} | "
        f"{r['flat_memory_bytes'] / 1e6:.1f} | {r['tuning_s']:.1f} |"
        for r in rows
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "verdicts.md").write_text(verdicts(rows), encoding="utf-8")


def verdicts(rows: list[dict[str, Any]]) -> str:
    """Each promise with the rows that it is about; one that no row is about says so."""
    single = [r for r in rows if r["real"] and r["batch_size"] == 1]
    promises = [
        ("speed: recall at least 0.95", "speed", lambda r: r["recall"] >= 0.95),
        ("speed: 20 times as fast as Flat", "speed", lambda r: r["times_as_fast_as_flat"] >= 20),
        ("tuning within 60 s", None, lambda r: r["tuning_s"] <= 60),
        (
            "memory: a twentieth of Flat's bytes",
            "memory",
            lambda r: r["memory_bytes"] <= r["flat_memory_bytes"] / 20,
        ),
        ("memory: recall at least 0.90", "memory", lambda r: r["recall"] >= 0.90),
        ("accuracy: recall at least 0.99", "accuracy", lambda r: r["recall"] >= 0.99),
    ]
    lines = []
    for text, strategy, holds in promises:
        about = [r for r in single if strategy in (None, r["strategy"])]
        kept = sum(holds(r) for r in about)
        state = f"{kept} of {len(about)}" if about else "nothing measured"
        lines.append(f"- {text} (real embeddings, single queries): {state}")
    picked = {r["pick"] for r in rows}
    lines.append(f"- different choices over all data sets: {len(picked)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
