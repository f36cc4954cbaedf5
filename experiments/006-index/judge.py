"""Whether the choices of study.py hold: on fresh queries, beside everything that could beat them.

    OMP_NUM_THREADS=1 python experiments/006-index/judge.py --out reports/index

Reads the records that study.py wrote there. For each data set and batch size it builds again exact
search, every pick, and every other setting that looked unbeaten while the study tuned; measures
all on queries that nothing was chosen by, in interleaved rounds; and writes points.csv, picks.csv,
table.md, verdicts.md and, for each data set and batch size, front-....svg.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from contestants import (
    Setting,
    beats,
    may_beat,
    measured,
    setting_of,
    structures,
    times_as_fast,
)
from data_sets import DataSet, data_sets
from front_figure import write_front
from promises import table, verdicts
from rich.console import Console

from capibench.index.metric import Metric
from capibench.index.tuner.candidates import Serving
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.points import Point
from capibench.measure import noise
from capibench.measure.stats import pareto_front

EXACT = "flat"
# A setting that was timed alone, in one round, may be so much quicker than it seemed.
DOUBT = 1.1
RECALL_DOUBT = 0.02  # so much less recall than the least of the picks, and it can beat none

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=None, help="default: all that was recorded")
    parser.add_argument(
        "--folders", nargs="+", default=[], help="of data_sets.py, instead of names"
    )
    parser.add_argument("--max-rivals", type=int, default=24, help="settings beside the picks")
    parser.add_argument("--rounds", type=int, default=31, help="in which each is timed once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    console = Console(stderr=True)
    faiss.omp_set_num_threads(chosen.threads)
    picks: list[Record] = []
    points: list[Record] = []
    for data, batch_size, records in contests(chosen.out, chosen.data, chosen.folders, console):
        console.print(f"{data.name}, {batch_size} at once: {len(records)} picks")
        own_picks, own_points = judged(data, batch_size, records, chosen)
        picks += own_picks
        points += own_points
        write_front(own_points, own_picks, chosen.out / f"front-{data.name}-{batch_size}.svg")
        write_csv(chosen.out / "picks.csv", picks)
        write_csv(chosen.out / "points.csv", points)
        (chosen.out / "table.md").write_text(table(picks), encoding="utf-8")
        (chosen.out / "verdicts.md").write_text(verdicts(picks), encoding="utf-8")


def contests(
    out: Path, names: list[str] | None, folders: list[str], console: Console
) -> Iterator[tuple[DataSet, int, list[Record]]]:
    """Records of the same vectors and batch size, with those vectors."""
    every = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-*.json"))]
    every = [r for r in every if names is None or r["data"] in names]
    for name, seed in dict.fromkeys((r["data"], r["seed"]) for r in every):
        own = [r for r in every if (r["data"], r["seed"]) == (name, seed)]
        written = [
            f for f in folders if json.loads(Path(f, "data.json").read_text())["name"] == name
        ]
        for data in data_sets(written or [name], seed, console):
            for batch_size in sorted({r["batch_size"] for r in own}):
                yield data, batch_size, [r for r in own if r["batch_size"] == batch_size]


def judged(
    data: DataSet, batch_size: int, records: list[Record], chosen: argparse.Namespace
) -> tuple[list[Record], list[Record]]:
    """A row per pick, and a row per setting that was measured."""
    serving = Serving(batch_size, Metric.COSINE, "float32", 0.2)
    picks = {r["strategy"]: pick_of(r) for r in records}
    exact = setting_of(EXACT, "")
    every = {s.name: s for s in (exact, *picks.values(), *rivals(records, chosen.max_rivals))}
    settings = list(every.values())
    indexes = structures(settings, data.vectors, serving)
    truth = Truth.of(data.vectors, data.fresh, records[0]["conditions"]["k"], serving.metric)
    before_s = noise.calibrate()
    found = measured(settings, indexes, truth, chosen.rounds, chosen.seed)
    drift = noise.drift(before_s, noise.calibrate())
    shared = {"data": data.name, "real": data.real, "batch_size": batch_size}
    rows = [
        {**shared, "name": p.name, "family": p.arm.family, **figures(p, found[exact.name])}
        for p in found.values()
    ]
    pick_rows = []
    for record in records:
        name = picks[record["strategy"]].name
        point = found[name]
        beaten_by = [p.name for p in found.values() if beats(p, point)]
        perhaps_by = [p.name for p in found.values() if may_beat(p, point)]
        pick_rows.append(
            {
                **shared,
                "strategy": record["strategy"],
                "pick": name,
                "met": record["met"],
                **figures(point, found[exact.name]),
                "flat_ms": found[exact.name].latency_s * 1e3,
                "flat_memory_bytes": found[exact.name].memory_bytes,
                "tuning_s": record["seconds"],
                "beaten_by": "; ".join(beaten_by),
                "perhaps_beaten_by": "; ".join(perhaps_by),
                "num_judged": len(found),
                "num_tuned_points": len(record["points"]),
                "ties": "; ".join(record["ties"]),
                "reasons": "; ".join(record["reasons"]),
                "features": json.dumps(record["features"]),
                "drift": drift,
                "tuning_drift": record["drift"],
            }
        )
    return pick_rows, rows


def figures(point: Point, exact: Point) -> Record:
    mean, low, high = (1.0, 1.0, 1.0) if point.exact else point.recall.interval()
    times, times_low, times_high = times_as_fast(point, exact)
    return {
        "recall": mean,
        "recall_low": low,
        "recall_high": high,
        "times_as_fast_as_flat": times,
        "times_low": times_low,
        "times_high": times_high,
        "ms": point.latency_s * 1e3,
        "ms_least": float(np.min(point.seconds)) * 1e3,
        "ms_most": float(np.max(point.seconds)) * 1e3,
        "memory_bytes": point.memory_bytes,
        "build_s": point.build_s,
    }


def pick_of(record: Record) -> Setting:
    row = next(r for r in record["points"] if r["mark"] == "chosen")
    return setting_of(row["arm"], row["query"])


def rivals(records: list[Record], most: int) -> list[Setting]:
    """What may be unbeaten of all that the study measured on all vectors, and may beat a pick:
    nothing else was better in recall, latency and memory, were it a little quicker than it seemed.
    The quickest round of a setting counts; of too many the slowest of the doubtful are left out."""
    best: dict[str, Record] = {}
    for record in records:
        for row in record["points"]:
            known = best.get(row["name"])
            if row["mark"] == "chosen" or (
                row["mark"] != "sample"
                and (known is None or row["latency_ms_least"] < known["latency_ms_least"])
            ):
                best[row["name"]] = row
    least = min(r["recall"] for r in best.values() if r["mark"] == "chosen") - RECALL_DOUBT
    rows = [r for r in best.values() if r["family"] != EXACT and r["recall"] >= least]
    kept = []
    for row in rows:
        others = [other for other in rows if other is not row]
        values = [
            (row["recall"], row["latency_ms_least"] / DOUBT, row["memory_bytes"]),
            *((o["recall"], o["latency_ms_least"], o["memory_bytes"]) for o in others),
        ]
        if pareto_front(values, ("higher", "lower", "lower"))[0]:
            kept.append(row)
    strict = pareto_front(
        [(r["recall"], r["latency_ms_least"], r["memory_bytes"]) for r in kept],
        ("higher", "lower", "lower"),
    )
    order = sorted(range(len(kept)), key=lambda i: (not strict[i], kept[i]["latency_ms_least"]))
    return [setting_of(kept[i]["arm"], kept[i]["query"]) for i in order[:most]]


def write_csv(path: Path, rows: list[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
