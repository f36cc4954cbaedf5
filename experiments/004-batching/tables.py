"""The study as Markdown: one table per machine, mix and arrivals, and the acceptance lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from summary import against, grouped, is_tie, of_best_found, of_oracle, values_of

NOTHING = "–"
NEAR_ORACLE, HALF_OF_GREEDY, RECOVERY_S = 0.9, 0.5, 60.0


def write_tables(cells: list[dict[str, Any]], bursts: list[dict[str, Any]], path: Path) -> None:
    legend = (
        "Share of what the oracle serves in time, in percent, with its 95 % interval over repeats; "
        "bold: best of the row. ≈: no difference from greedy is shown (paired by repeat). Where "
        "the oracle is not exact the share of its proven bound comes first, and in brackets that "
        "of the best schedule which it found: the true share is between the two."
    )
    parts = [legend]
    for mix in values_of(cells, "mix"):
        for machine in values_of(cells, "machine"):
            for kind in values_of(cells, "arrivals"):
                block = [
                    row
                    for row in cells
                    if (row["mix"], row["machine"], row["arrivals"]) == (mix, machine, kind)
                ]
                if block:
                    parts += [f"## {mix}, {machine}, {kind}", _shares(block), _latencies(block)]
                    parts += [_classes(block)] if mix == "classes" else []
    if bursts:
        parts += ["## after a burst", _bursts(bursts)]
    parts += ["## acceptance", _acceptance(cells, bursts)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _shares(block: list[dict[str, Any]]) -> str:
    groups, names = grouped(block), values_of(block, "strategy")
    mix, machine, kind = (block[0][key] for key in ("mix", "machine", "arrivals"))
    lines = []
    for load in values_of(block, "load"):
        found = {name: groups.get((mix, machine, kind, load, name)) for name in names}
        cells = {name: rows for name, rows in found.items() if rows is not None}
        shares = {name: of_oracle(rows) for name, rows in cells.items()}
        best = max(share.mean for share in shares.values())
        line = [f"{load:g}"]
        for name in names:
            if name not in cells:  # this part of the study has not run yet
                line.append(NOTHING)
                continue
            percent = 100 * shares[name].mean
            low, high = shares[name].low, shares[name].high
            text = f"{percent:.1f}"
            if shares[name].mean >= best - 1e-9:
                text = f"**{text}**"
            if low is not None and high is not None:
                text += f" ±{50 * (high - low):.1f}"
            if not all(row["oracle_exact"] for row in cells[name]):
                text += f" ({100 * of_best_found(cells[name]).mean:.1f})"
            if name != "greedy" and is_tie(against(cells[name], cells["greedy"])):
                text += " ≈"
            line.append(text)
        lines.append(line)
    return _table(["load", *names], lines)


def _latencies(block: list[dict[str, Any]]) -> str:
    names = values_of(block, "strategy")
    lines = []
    for load in values_of(block, "load"):
        line = [f"{load:g}"]
        for name in names:
            rows = [row for row in block if (row["load"], row["strategy"]) == (load, name)]
            if not rows:
                line.append(NOTHING)
                continue
            p50, p99, size = (
                _mean(rows, key) for key in ("latency_p50_ms", "latency_p99_ms", "mean_batch_size")
            )
            answered = sum(row["answered"] for row in rows) / sum(row["offered"] for row in rows)
            line.append(f"{100 * answered:.0f} %; {p50} / {p99}; {size}")
        lines.append(line)
    return "Answered; p50 / p99 of those, ms; mean batch size:\n\n" + _table(
        ["load", *names], lines
    )


def _classes(block: list[dict[str, Any]]) -> str:
    columns = sorted(key for key in block[0] if key.startswith("good."))
    lines = []
    for load in values_of(block, "load"):
        for name in values_of(block, "strategy"):
            rows = [row for row in block if (row["load"], row["strategy"]) == (load, name)]
            if not rows:
                continue
            means = [100 * float(np.mean([row[column] for row in rows])) for column in columns]
            lines.append([f"{load:g}", name, *(f"{mean:.1f}" for mean in means)])
    heads = ["load", "strategy", *(column.replace("good.", "class ") for column in columns)]
    return "Good requests of each class, in percent:\n\n" + _table(heads, lines)


def _bursts(bursts: list[dict[str, Any]]) -> str:
    lines = []
    for machine in values_of(bursts, "machine"):
        for name in values_of(bursts, "strategy"):
            line = [machine, name]
            for told in (True, False):
                rows = [
                    row
                    for row in bursts
                    if (row["machine"], row["strategy"], row["deadlines_told"])
                    == (machine, name, told)
                ]
                share = f"{100 * np.mean([r['good_share'] for r in rows]):.1f}" if rows else NOTHING
                line += [_slowest(rows), share]
            lines.append(line)
    heads = [
        "machine",
        "strategy",
        "recovery (s), deadlines told",
        "good (%)",
        "recovery (s), not told",
        "good (%)",
    ]
    return "Recovery is the slowest of all repeats.\n\n" + _table(heads, lines)


def _slowest(rows: Sequence[dict[str, Any]]) -> str:
    seconds = [row["recovery_s"] for row in rows]
    if not seconds:
        return NOTHING
    return "never" if None in seconds else f"{max(seconds):g}"


def _acceptance(cells: list[dict[str, Any]], bursts: list[dict[str, Any]]) -> str:
    """Every place where a line of the issue is not met, by name and number."""
    broken = []
    groups = grouped([row for row in cells if row["strategy"] != "none"])
    for key in dict.fromkeys(group[:4] for group in groups):
        rows = {name: groups[(*key, name)] for *where, name in groups if tuple(where) == key}
        shares = {name: of_oracle(row).mean for name, row in rows.items()}
        good = {name: sum(one["good"] for one in row) for name, row in rows.items()}
        best = max(shares, key=lambda name: shares[name])
        if shares[best] < NEAR_ORACLE:
            known = max(of_best_found(row).mean for row in rows.values())
            broken.append(
                f"- {key}: the best, {best}, has {shares[best]:.1%} of the bound, and the best "
                f"{known:.1%} of the best schedule found"
            )
        for name, count in good.items():
            if count < HALF_OF_GREEDY * good["greedy"]:
                broken.append(f"- {key}: {name} has {count / good['greedy']:.1%} of greedy")
    for row in bursts:
        if row["recovery_s"] is None or row["recovery_s"] > RECOVERY_S:
            told = "told" if row["deadlines_told"] else "not told"
            broken.append(
                f"- burst, {row['machine']}, {row['strategy']}, deadlines {told}, repeat "
                f"{row['repeat']}: recovery {row['recovery_s']}"
            )
    return "\n".join(broken) if broken else "Every line is met in every cell."


def _mean(rows: Sequence[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    return f"{np.mean(values):.3g}" if values else NOTHING


def _table(heads: list[str], lines: list[list[str]]) -> str:
    ruler = ["---", *("---:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *lines))
