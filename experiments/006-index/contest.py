"""Our tuner's picks against FAISS' own parameter search, autofaiss, hnswlib and usearch.

    OMP_NUM_THREADS=1 python experiments/006-index/data_sets.py docs-50000 --out vectors
    # autofaiss in an environment of its own: see autofaiss_choices.py
    OMP_NUM_THREADS=1 python experiments/006-index/contest.py prepare --records reports/index \\
        --data vectors --out reports/contest --autofaiss reports/autofaiss
    OMP_NUM_THREADS=1 python experiments/006-index/contest.py measure --records reports/index \\
        --data vectors --out reports/contest

`prepare` builds what a user would have had (slow; other work may run beside), finds the settings at
which each reaches the recall, and keeps both. `measure` times these and our picks in interleaved
rounds on fresh queries (a minute; nothing else should run) and writes contest.csv and contest.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from contestants import beats, setting_of, structures, times_as_fast
from data_sets import DataSet, data_sets
from rich.console import Console
from rivals import (
    GUIDELINE,
    SAME_STRUCTURES,
    Bare,
    Found,
    Searchable,
    autofaiss_indexes,
    explore,
    faiss_finder,
    graphs,
    least_effort,
    set_faiss,
)

from capibench.index.exact_scan import use_blas_for_batches
from capibench.index.metric import Floats, Metric, comparable
from capibench.index.tuner.candidates import Serving
from capibench.index.tuner.laboratory import memory_bytes, seconds_per_query
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.objective import RecallSample
from capibench.index.tuning.points import Arm, Point
from capibench.measure import noise

K = 10
MIN_RECALL = 0.95
NUM_ROUNDS = 11
ROUND_S = 0.05
OURS = ("speed", "memory", "balanced")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("--records", type=Path, required=True, help="what study.py wrote")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--autofaiss", type=Path, help="what autofaiss_choices.py wrote")
    parser.add_argument("--only", nargs="+", help="prepare these descriptions or libraries only")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (data,) = data_sets([chosen.data], chosen.seed, Console(stderr=True))
    use_blas_for_batches(data.vectors.shape[1])
    if chosen.step == "prepare":
        prepare(data, chosen)
    else:
        measure(data, chosen)


def prepare(data: DataSet, chosen: argparse.Namespace) -> None:
    vectors = comparable("vectors", data.vectors, Metric.COSINE)
    truth = Truth.of(vectors, comparable("queries", data.tune, Metric.COSINE), K, Metric.IP)
    for description in (*GUIDELINE, *SAME_STRUCTURES):
        if chosen.only and description not in chosen.only:
            continue
        path = chosen.out / f"faiss {description}.index"
        if path.exists():
            index = faiss.read_index(str(path))
        else:
            index = faiss.index_factory(
                data.vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT
            )
            index.train(vectors)
            index.add(vectors)
            faiss.write_index(index, str(path))
        keep(path, chosen.batch_size, explore(index, truth, chosen.batch_size, MIN_RECALL))
    if chosen.autofaiss:
        for name, (index, own) in autofaiss_indexes(chosen.autofaiss).items():
            path = chosen.out / f"{name}.index"
            faiss.write_index(index, str(path))
            found = explore(index, truth, chosen.batch_size, MIN_RECALL)
            keep(path, chosen.batch_size, found, own=own)
    for name, find, set_effort, _ in graphs(vectors):
        if not chosen.only or name.split()[0] in chosen.only:
            found = least_effort(find, set_effort, truth, MIN_RECALL)
            keep(chosen.out / name, chosen.batch_size, found)


def keep(path: Path, batch_size: int, found: Found, own: str | None = None) -> None:
    content = {
        "settings": list(found.settings),
        "best_recall": found.best_recall,
        "tuning_s": found.tuning_s,
        "own": own,
    }
    target = path.parent / f"{path.name.removesuffix('.index')}.{batch_size}.json"
    target.write_text(json.dumps(content), encoding="utf-8")
    print(target.stem, content)


@dataclass
class Contestant:
    """Something to search with, set up anew before each round."""

    name: str
    setting: str
    ours: bool
    index: Searchable
    set_up: Callable[[], object]
    memory_bytes: int


def measure(data: DataSet, chosen: argparse.Namespace) -> None:
    vectors = comparable("vectors", data.vectors, Metric.COSINE)
    fresh = comparable("queries", data.fresh, Metric.COSINE)
    truth = Truth.of(vectors, fresh, K, Metric.IP)
    everyone = [
        *own_picks(data, chosen),
        *faiss_contestants(chosen.out, chosen.batch_size),
        *graph_contestants(chosen.out, chosen.batch_size, vectors),
    ]
    seconds: Floats = np.empty((len(everyone), NUM_ROUNDS))
    generator = np.random.default_rng(chosen.seed + 1)
    before_s = noise.calibrate()
    for i in range(NUM_ROUNDS):
        for j in generator.permutation(len(everyone)):
            everyone[j].set_up()
            seconds[j, i] = seconds_per_query(everyone[j].index, fresh, K, ROUND_S)
    print(f"drift: {noise.drift(before_s, noise.calibrate()):+.1%}")
    points = []
    for contestant, row in zip(everyone, seconds, strict=True):
        contestant.set_up()
        found = truth.recall_of(contestant.index.search(fresh, K)[0])
        arm = Arm(contestant.name, contestant.name, ())
        points.append(
            Point(arm, {}, len(vectors), False, RecallSample(found, K), row,
                  contestant.memory_bytes, 0.0)
        )  # fmt: skip
    write(chosen.out, chosen.batch_size, everyone, points)


def own_picks(data: DataSet, chosen: argparse.Namespace) -> list[Contestant]:
    serving = Serving(chosen.batch_size, Metric.COSINE, "float32", 0.2)
    found = {}
    for strategy in OURS:
        path = chosen.records / f"{data.name}-{chosen.batch_size}-{strategy}.json"
        if path.exists():
            record = json.loads(path.read_text(encoding="utf-8"))
            row = next(r for r in record["points"] if r["mark"] == "chosen")
            found[strategy] = setting_of(row["arm"], row["query"])
    found["exact"] = setting_of("flat", "")
    indexes = structures(list(found.values()), data.vectors, serving)
    everyone = []
    for strategy, setting in found.items():
        index = indexes[setting.arm.name]
        query = dict(setting.query)
        everyone.append(
            Contestant(f"CapiBench {strategy}: {setting.arm.name}", str(query), True, index,
                       partial(index.set_query_params, query), memory_bytes(index))
        )  # fmt: skip
    return everyone


def faiss_contestants(out: Path, batch_size: int) -> list[Contestant]:
    everyone = []
    for path in sorted(out.glob("*.index")):
        kept = out / f"{path.stem}.{batch_size}.json"
        if not kept.exists():
            continue
        content = json.loads(kept.read_text(encoding="utf-8"))
        settings = content["settings"]
        if content["own"] is not None:
            settings = [content["own"], *settings]
        index = faiss.read_index(str(path)) if settings else None
        for setting in settings:
            name = path.stem + (" as it set it" if setting == content["own"] else "")
            everyone.append(
                Contestant(name, setting, False, Bare(batch_size, faiss_finder(index)),
                           partial(set_faiss, index, setting), path.stat().st_size)
            )  # fmt: skip
        if not content["settings"]:
            print(
                f"{path.stem}: no setting reaches {MIN_RECALL}; best {content['best_recall']:.4f}"
            )
    return everyone


def graph_contestants(out: Path, batch_size: int, vectors: Any) -> list[Contestant]:
    everyone = []
    for name, find, set_effort, num_bytes in graphs(vectors):
        kept = out / f"{name}.{batch_size}.json"
        if kept.exists():
            everyone += [
                Contestant(name, f"ef={setting}", False, Bare(batch_size, find),
                           partial(set_effort, int(setting)), num_bytes)
                for setting in json.loads(kept.read_text(encoding="utf-8"))["settings"]
            ]  # fmt: skip
    return everyone


def write(out: Path, batch_size: int, everyone: list[Contestant], points: list[Point]) -> None:
    """A row per contestant, with what each of our picks is worth beside it."""
    ours = [p for c, p in zip(everyone, points, strict=True) if c.ours]
    rows = []
    for contestant, point in zip(everyone, points, strict=True):
        mean, low, high = point.recall.interval()
        row: dict[str, Any] = {
            "name": contestant.name,
            "setting": contestant.setting,
            "batch_size": batch_size,
            "recall": mean,
            "recall_low": low,
            "recall_high": high,
            "us_per_query": point.latency_s * 1e6,
            "memory_bytes": point.memory_bytes,
            "beats": "; ".join(o.arm.name for o in ours if beats(point, o)),
        }
        for own in ours:
            strategy = own.arm.name.partition(":")[0].removeprefix("CapiBench ")
            times, times_low, times_high = times_as_fast(own, point)
            row[f"{strategy}_times"] = f"{times:.2f} [{times_low:.2f}, {times_high:.2f}]"
        rows.append(row)
    rows.sort(key=lambda row: row["us_per_query"])
    with (out / f"contest-{batch_size}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| index | setting | recall@10 | µs per query | MB in memory | speed's pick is faster by |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['name']} | {r['setting']} | {r['recall']:.4f} [{r['recall_low']:.4f}, "
        f"{r['recall_high']:.4f}] | {r['us_per_query']:.0f} | {r['memory_bytes'] / 1e6:.1f} | "
        f"{r.get('speed_times', '')} |"
        for r in rows
    ]
    text = "\n".join(lines) + "\n"
    (out / f"contest-{batch_size}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
