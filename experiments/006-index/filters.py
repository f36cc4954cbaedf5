"""Filtered search: is recall kept, and is it ever slower than comparing all that is allowed?

    OMP_NUM_THREADS=1 python experiments/006-index/filters.py prepare --out reports/filters
    OMP_NUM_THREADS=1 python experiments/006-index/filters.py measure --out reports/filters

`prepare` builds every shipped type at the least effort that reaches a recall of 0.95 without a
filter, and saves it (other work may run beside). `measure` asks each with filters that allow 50 %,
10 %, 1 % and 0.1 % of the vectors: drawn at random, or those nearest to a random vector (a topic,
which most queries are far from). Beside it, in interleaved rounds, exact search with that filter
over the same stored vectors. Writes filters.csv and filters.md; nothing else should run.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import numpy as np
from contestants import arm_of
from data_sets import DataSet, data_sets
from rich.console import Console

from capibench.errors import MissingExtra
from capibench.index.allowed import Allowed
from capibench.index.index import Ids
from capibench.index.metric import Floats, Metric
from capibench.index.stored_index import StoredIndex, load_index
from capibench.index.tuner.candidates import Serving, built, family_names, node_of_arm
from capibench.index.tuner.laboratory import BuiltTrial
from capibench.index.tuner.truth import Truth
from capibench.index.tuning.walk import walk
from capibench.measure import noise, stats

K = 10
MIN_RECALL, CONFIDENCE = 0.95, 0.95
SHARES = (0.5, 0.1, 0.01, 0.001)
BATCH_SIZES = (1, 64)
KINDS = ("random", "topic")
NUM_QUERIES = 500
NUM_ROUNDS = 21
ROUND_S = 0.015
SERVING = Serving(1, Metric.COSINE, "float32", 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("step", choices=("prepare", "measure"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="docs-50000")
    parser.add_argument("--types", nargs="+", default=None, help="default: all that filter")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (data,) = data_sets([chosen.data], chosen.seed, Console(stderr=True))
    names = chosen.types or [name for name in family_names() if name != "flat"]
    if chosen.step == "prepare":
        for name in names:
            prepare(name, data, chosen.out)
    else:
        rows = []
        for name in names:
            if (chosen.out / name).exists():
                rows += measure(name, data, chosen.out, chosen.seed)
                write(chosen.out, rows)


def prepare(name: str, data: DataSet, out: Path) -> None:
    """Build, find the quickest setting that surely reaches the recall, save."""
    ids = np.arange(len(data.vectors), dtype=np.int64)
    try:
        index = built(node_of_arm(arm_of(name), SERVING))
    except MissingExtra as error:
        print(f"{name}: left out: {error}")
        return
    begin_s = perf_counter()
    index.build(data.vectors, ids)
    truth = Truth.of(data.vectors, data.tune, K, SERVING.metric)
    trial = BuiltTrial(arm_of(name), index, truth, perf_counter() - begin_s, MIN_RECALL)
    points = walk(index.query_ladders(), trial.measure, (MIN_RECALL,), CONFIDENCE, 1)
    enough = [p for p in points if p.recall_bound(CONFIDENCE) >= MIN_RECALL]
    best = min(enough or points, key=lambda p: p.latency_s)
    index.set_query_params(best.query)
    for field, value in best.query.items():
        setattr(index, field, value)  # saved with the index
    index.save(out / name)
    print(
        f"{name}: {dict(best.query)}, recall {best.recall.mean:.4f}, {best.latency_s * 1e3:.3f} ms"
    )


def measure(name: str, data: DataSet, out: Path, seed: int) -> list[dict[str, Any]]:
    index = load_index(out / name)
    exact = built(node_of_arm(arm_of("flat"), SERVING))
    exact.build_over(index.store)
    rows = []
    before_s = noise.calibrate()
    for kind in KINDS:
        for share in SHARES:
            ids = chosen_ids(kind, share, data, seed)
            for batch_size in BATCH_SIZES:
                recall = recall_of(index, ids, data, batch_size)
                ours, theirs = timed(index, exact, ids, data, batch_size, seed)
                ratio = stats.percentile(ours / theirs, 0.5)
                rows.append(
                    {
                        "type": name,
                        "setting": " ".join(f"{k}={v}" for k, v in index.query_params().items()),
                        "kind": kind,
                        "share": share,
                        "batch_size": batch_size,
                        "recall": float(recall.mean()),
                        "us": float(np.median(ours)) * 1e6,
                        "exact_us": float(np.median(theirs)) * 1e6,
                        "times_exact": ratio.value,
                        "times_exact_low": ratio.low,
                        "times_exact_high": ratio.high,
                    }
                )
    drift = noise.drift(before_s, noise.calibrate())
    return [{**row, "drift": drift} for row in rows]


def chosen_ids(kind: str, share: float, data: DataSet, seed: int) -> Ids:
    generator = np.random.default_rng(seed)
    size = round(share * len(data.vectors))
    if kind == "random":
        return np.sort(generator.choice(len(data.vectors), size, replace=False))
    near = data.vectors @ data.vectors[generator.integers(len(data.vectors))]
    return np.sort(np.argpartition(-near, size - 1)[:size])


def recall_of(index: StoredIndex, ids: Ids, data: DataSet, batch_size: int) -> Floats:
    """Of fresh queries, among the allowed, asked as they are timed: the size of a batch decides
    whether the structure answers."""
    k, allowed, queries = min(K, len(ids)), Allowed(ids), data.fresh[:NUM_QUERIES]
    truth = Truth.of(data.vectors[ids], queries, k, SERVING.metric)
    found = np.concatenate(
        [
            index.search(queries[i : i + batch_size], k, allowed)[0]
            for i in range(0, len(queries), batch_size)
        ]
    )
    assert np.isin(found, ids).all()
    return truth.recall_of(np.searchsorted(ids, found))


def timed(
    index: StoredIndex, exact: StoredIndex, ids: Ids, data: DataSet, batch_size: int, seed: int
) -> tuple[Floats, Floats]:
    """Seconds per query of each, [rounds], by turns."""
    allowed, k = Allowed(ids), min(K, len(ids))
    batches = [data.fresh[i : i + batch_size] for i in range(0, len(data.fresh), batch_size)]
    for one in (index, exact):
        one.search(batches[0], k, allowed)  # measures its share, looks the ids up
    generator = np.random.default_rng(seed)
    seconds: Floats = np.empty((2, NUM_ROUNDS))
    for i in range(NUM_ROUNDS):
        for j in generator.permutation(2):
            seconds[j, i] = one_round((index, exact)[j], batches, k, allowed)
    return seconds[0], seconds[1]


def one_round(index: StoredIndex, batches: list[Any], k: int, allowed: Allowed) -> float:
    index.search(batches[-1], k, allowed)
    count, begin_s = 0, perf_counter()
    elapsed_s = 0.0
    for batch in batches:
        index.search(batch, k, allowed)
        count += len(batch)
        elapsed_s = perf_counter() - begin_s
        if elapsed_s > ROUND_S:
            break
    return elapsed_s / count


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    with (out / "filters.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = []
    for kind in KINDS:
        own = [r for r in rows if r["kind"] == kind]
        kept = [r for r in own if r["recall"] >= MIN_RECALL]
        slower = [r for r in own if r["times_exact"] > 1.1]
        surely = [r for r in slower if r["times_exact_low"] > 1.1]
        lines.append(
            f"{kind}: recall at least {MIN_RECALL} in {len(kept)} of {len(own)}, slower than exact "
            f"by more than 10 % in {len(slower)} (beyond the noise in {len(surely)})"
        )
    for batch_size in BATCH_SIZES:
        lines += [
            "",
            f"Random filters, {batch_size} at once: recall@10, and time over that of exact search",
            "",
            "| type | " + " | ".join(f"{share:.1%}" for share in SHARES) + " |",
            "|---|" + "---:|" * len(SHARES),
        ]
        for name in dict.fromkeys(r["type"] for r in rows):
            cells = [
                f"{r['recall']:.3f}, {r['times_exact']:.2f}"
                for r in rows
                if (r["type"], r["kind"], r["batch_size"]) == (name, "random", batch_size)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (out / "filters.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
