"""What a finished study `caching` says: hit rates by tier and type beside their ceilings, seconds
saved, latency with and without cache over all repeats, and whether the answers are the same.

    capibench study caching
    python experiments/005-caching/tables.py outputs/studies/<time>

The latency ratio is paired: the same questions at the same times. Its interval is a bootstrap over
blocks of consecutive requests.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TYPES = ("query_result", "embedding", "model_output")
BASELINE = "no_cache"
BLOCK_REQUESTS = 20
RESAMPLES = 2000


def read(study: Path) -> dict[str, list[tuple[dict[str, Any], pd.DataFrame]]]:
    """By name of the stack: document and measured rows of each finished repeat, in order."""
    runs: dict[str, list[tuple[dict[str, Any], pd.DataFrame]]] = defaultdict(list)
    for path in sorted(study.glob("*/run.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["status"] == "finished":
            rows = pd.read_parquet(path.with_name("records.parquet"))
            rows = rows[rows["phase"] == "measure"].sort_values("request_id")
            runs[document["config"]["name"]].append((document, rows.reset_index(drop=True)))
    for repeats in runs.values():
        repeats.sort(key=lambda run: run[0]["config"]["repeat"])
    return runs


def latencies(repeats: list[tuple[dict[str, Any], pd.DataFrame]]) -> list[np.ndarray[Any, Any]]:
    """Milliseconds from the scheduled arrival, per repeat in order of request."""
    return [1e3 * (rows["done_s"] - rows["intended_s"]).to_numpy() for _, rows in repeats]


def ratio(
    ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]], share: float
) -> str:
    """Quantile of ours over theirs, and its 95 % interval."""
    rng = np.random.default_rng(0)
    blocks = [
        (a[begin : begin + BLOCK_REQUESTS], b[begin : begin + BLOCK_REQUESTS])
        for a, b in zip(ours, theirs, strict=True)
        for begin in range(0, len(a), BLOCK_REQUESTS)
    ]
    drawn = []
    for _ in range(RESAMPLES):
        chosen = [blocks[place] for place in rng.integers(len(blocks), size=len(blocks))]
        a, b = (np.concatenate([block[side] for block in chosen]) for side in (0, 1))
        drawn.append(np.quantile(a, share) / np.quantile(b, share))
    low, high = np.quantile(drawn, (0.025, 0.975))
    point = np.quantile(np.concatenate(ours), share) / np.quantile(np.concatenate(theirs), share)
    return f"{point:.3f} [{low:.3f}, {high:.3f}]"


def same_answers(ours: list[Any], theirs: list[Any]) -> str:
    """Of the requests that both answered, how many got the same text."""
    same = total = 0
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        both = a.merge(b, on="request_id")
        same += int((both["answer_x"] == both["answer_y"]).sum())
        total += len(both)
    return f"{same} of {total}"


def metric(document: dict[str, Any], name: str) -> str:
    """A share as percent; – where it was not measured."""
    value = document["metrics"][name]["value"]
    return "–" if value is None else f"{100 * value:.1f}"


def main() -> None:
    """Print two tables."""
    runs = read(Path(sys.argv[1]))
    out = sys.stdout.write
    out(
        "| stack | requests | failed | p50 (ms) | p95 (ms) | p50, ratio | p95, ratio | "
        "same answers |\n|---|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    base = latencies(runs[BASELINE])
    for name, repeats in runs.items():
        ms = latencies(repeats)
        rows = pd.concat([rows for _, rows in repeats])
        out(
            f"| {name} | {len(rows)} | {int((rows['status'] != 'ok').sum())} | "
            f"{np.quantile(np.concatenate(ms), 0.5):.1f} | "
            f"{np.quantile(np.concatenate(ms), 0.95):.1f} | "
            f"{ratio(ms, base, 0.5)} | {ratio(ms, base, 0.95)} | "
            f"{same_answers(repeats, runs[BASELINE])} |\n"
        )
    out(
        "\n| stack | repeat | tier bytes L1 / L2 | answers: hits, L1 + L2 (%) | Belady (%) | "
        "infinite (%) | vectors: hits, L1 + L2 (%) | outputs: hits, L1 + L2 (%) | "
        "seconds saved: answers + vectors + outputs | L1 hit (us) | L2 hit (us) |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    for name, repeats in runs.items():
        for document, _ in repeats:
            cache = document["components"]["cache"]
            if not cache:
                continue
            cells = [name, str(document["config"]["repeat"])]
            cells.append(" / ".join(f"{tier['bytes']:,}" for tier in cache["tiers"].values()))
            for kind in ("result", "embedding", "output"):
                rates = [metric(document, f"cache.{kind}.{what}") for what in (
                    "hit_rate", "l1_hit_rate", "l2_hit_rate"
                )]  # fmt: skip
                cells.append(f"{rates[0]} ({rates[1]} + {rates[2]})")
                if kind == "result":
                    cells.append(metric(document, "cache.result.belady_hit_rate"))
                    cells.append(metric(document, "cache.result.infinite_hit_rate"))
            kept = [cache["types"][kind]["saved_s"] for kind in TYPES if kind in cache["types"]]
            cells.append(" + ".join(f"{seconds:.2f}" for seconds in kept))
            for tier in ("l1", "l2"):
                p50_ms = cache["access_times"][tier]["p50_ms"]
                cells.append("–" if p50_ms is None else f"{1e3 * p50_ms:.1f}")
            out("| " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
