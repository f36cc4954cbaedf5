"""results.json as people read it: one Markdown page, three CSV files. Pure but for writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

NOTHING = "–"
LEGEND = (
    "[low, high]: 95 % interval · ≈ tie with the baseline · – not measured · × times as fast as "
    "the baseline in the same round"
)
MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": ""}


def write_tables(document: dict[str, Any], folder: Path) -> None:
    (folder / "table.md").write_text(page(document), encoding="utf-8")
    variants, speed, promises = [], [], []
    for model, record in document["models"].items():
        for name, entry in record["variants"].items():
            variants.append({"model": model, "variant": name, **_flat(entry)})
        speed += [{"shape_model": model, **row} for row in record["speed"]]
        promises += record.get("promises", [])
    for name, rows in (("variants", variants), ("speed", speed), ("promises", promises)):
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def page(document: dict[str, Any]) -> str:
    cpu = document["environment"]["cpu"]
    gpu = document["environment"]["gpu"]
    parts = [
        f"`{document['command']}`",
        f"{cpu['model']}, {cpu['usable_cores']} cores"
        + (f", {gpu['name']}" if gpu else "")
        + f"; auto precision is {document['native_precision']}; "
        f"commit {document['environment']['code']['commit']}"
        + (" with changes" if document["environment"]["code"]["dirty"] else ""),
        LEGEND,
    ]
    for model, record in document["models"].items():
        parts += [f"## {model}", _sizes(record)]
        if any(entry["quality"] for entry in record["variants"].values()):
            parts.append(_quality(record))
        parts.append(_layers(record))
        parts += [*_speeds(record), *_floors(record), _promises(record), _left_out(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mb(value: int | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:,.1f}"


def _times(above: float | None, below: float | None) -> str:
    return NOTHING if above is None or below is None else f"{above / below:.2f}"


def _figure(value: float | None, low: float | None, high: float | None, digits: str) -> str:
    if value is None:
        return NOTHING
    if low is None or high is None:
        return f"{value:{digits}}"
    return f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"


def _sizes(record: dict[str, Any]) -> str:
    entries = record["variants"]
    baselines = [name for name, entry in entries.items() if entry["baseline"]]
    heads = [
        "variant",
        "weights on disk (MB)",
        *(f"compression against {name}" for name in baselines),
        "in memory (MB)",
        "resident (MB)",
        "peak loading (MB)",
        "peak decoding (MB)",
        "GPU peak (MB)",
        "quantizing (s)",
        "kernel",
    ]
    rows = []
    for name, entry in entries.items():
        footprint = entry["footprint"] or {}
        kernel = "failed" if entry["failed"] else footprint["kernel"]
        if entry["baseline"] and not entry["failed"]:
            kernel = f"unquantized {footprint['dtype']}"
        made_s = entry["quantize_s"]
        rows.append(
            [
                name,
                _mb(entry["disk_weight_bytes"]),
                *(
                    _times(entries[b]["disk_weight_bytes"], entry["disk_weight_bytes"])
                    for b in baselines
                ),
                *(
                    _mb(footprint.get(key))
                    for key in (
                        "model_bytes",
                        "resident_bytes",
                        "load_peak_bytes",
                        "decode_peak_bytes",
                        "gpu_peak_bytes",
                    )
                ),
                NOTHING if made_s is None else f"{made_s:,.1f}",
                kernel,
            ]
        )
    imported = [e["footprint"]["imported_bytes"] for e in entries.values() if e["footprint"]]
    note = ""
    if imported:
        note = (
            f"\n\nResident and peak memory are those of a process that only loads and decodes; "
            f"{_mb(min(imported))} MB of each stand before any weight is loaded."
        )
    return _table(heads, rows) + note


def _quality(record: dict[str, Any]) -> str:
    keys = list(
        dict.fromkeys(key for e in record["variants"].values() for key in e["quality"] or {})
    )
    rows = []
    for name, entry in record["variants"].items():
        figures = [(entry["quality"] or {}).get(key) for key in keys]
        rows.append(
            [
                name,
                *(
                    NOTHING if f is None else _figure(f["value"], f["low"], f["high"], ".4g")
                    for f in figures
                ),
            ]
        )
    return _table(["variant", *keys], rows)


def _speeds(record: dict[str, Any]) -> list[str]:
    """One table per thread count and phase; a baseline stands once per group it was measured in."""
    baselines = [name for name, entry in record["variants"].items() if entry["baseline"]]
    tables = []
    keys = dict.fromkeys((row["num_threads"], row["phase"]) for row in record["speed"])
    for threads, phase in sorted(keys):
        rows = [r for r in record["speed"] if (r["num_threads"], r["phase"]) == (threads, phase)]
        heads = [
            "variant",
            "batch",
            "prompt tokens",
            "tokens/s",
            "TTFT (ms)" if phase == "prefill" else "TPOT (ms)",
            *(f"× {name}" for name in baselines),
            "group",
        ]
        if phase == "decode":
            heads.insert(5, "time / bandwidth floor")
        lines = []
        for row in sorted(rows, key=lambda r: (r["prompt_tokens"], r["batch_size"], r["group"])):
            latency_s = row["ttft_s" if phase == "prefill" else "tpot_s"]
            line = [
                row["model"],
                str(row["batch_size"]),
                str(row["prompt_tokens"]),
                _figure(
                    row["tokens_per_s"], row["tokens_per_s.low"], row["tokens_per_s.high"], ",.4g"
                ),
                f"{1000 * latency_s:,.4g}",
                *(_ratio(row, name) for name in baselines),
                str(row["group"]),
            ]
            if phase == "decode":
                line.insert(5, f"{row['over_floor']:.2f}")
            lines.append(line)
        tables.append(f"### {phase}, {threads} thread(s)\n\n{_table(heads, lines)}")
    return tables


def _ratio(row: dict[str, Any], against: str) -> str:
    if row["model"] == against:
        return "1"
    value, low, high, tie = (
        row.get(f"speedup.{against}.{end}") for end in ("value", "low", "high", "tie")
    )
    return ("≈ " if tie else "") + _figure(value, low, high, ".2f")


def _floors(record: dict[str, Any]) -> list[str]:
    read = [
        f"{one['bytes_per_s'] / 1e9:.1f} GB/s with {one['threads']} thread(s)"
        for one in record["bandwidth"]
    ]
    drifts = [abs(drift) for one in record["noise"] for drift in one["drift"]]
    worst = f"worst drift of the calibration kernel: {max(drifts):.0%}" if drifts else ""
    flagged = " ⚠ over 10 %" if drifts and max(drifts) > 0.10 else ""
    return [f"Read bandwidth: {', '.join(read)}; {worst}{flagged}."] if read else []


def _promises(record: dict[str, Any]) -> str:
    """One table per promise: a line per condition, a column per variant."""
    found = record["promises"]
    variants = list(dict.fromkeys(one["variant"] for one in found))
    parts = []
    for promise in dict.fromkeys(one["promise"] for one in found):
        cells: dict[str, dict[str, str]] = {}
        for one in found:
            if one["promise"] == promise:
                cells.setdefault(one["condition"], {})[one["variant"]] = _verdict(one)
        lines = [
            [condition, *(row.get(v, NOTHING) for v in variants)]
            for condition, row in cells.items()
        ]
        parts.append(_table([f"**{promise}**", *variants], lines))
    if not parts:
        return ""
    legend = (
        "✓ holds · ✗ does not hold · ? undecided, the 95 % interval spans the bound · – not "
        "measured. Intervals stand in the tables above and in promises.csv."
    )
    return "\n\n".join(["### promises", legend, *parts])


def _verdict(one: dict[str, Any]) -> str:
    if one["value"] is None:
        return NOTHING
    percent = one["promise"].endswith(("less memory", "accuracy loss"))
    value = f"{one['value']:.2%}" if percent else f"{one['value']:.2f}"
    return f"{value} {MARKS[one['verdict']]}"


def _layers(record: dict[str, Any]) -> str:
    """Self-check: mean and worst relative error of the layers that are not as they were."""
    lines = []
    for name, entry in record["variants"].items():
        if entry["layer_errors"] is None:
            continue
        cells = []
        for key in ("weight_relative_error", "output_relative_error"):
            changed = {one["name"]: one[key] for one in entry["layer_errors"] if one[key]}
            worst = max(changed, key=lambda layer: changed[layer], default=None)
            if worst is None:
                cells += (
                    ["0", NOTHING]
                    if any(one[key] is not None for one in entry["layer_errors"])
                    else [NOTHING, NOTHING]
                )
            else:
                mean = sum(changed.values()) / len(changed)
                cells += [f"{mean:.2%}", f"{changed[worst]:.2%} {worst}"]
        lines.append([name, *cells])
    heads = ["variant", "weight error, mean", "worst", "output error, mean", "worst"]
    return _table(heads, lines) if lines else ""


def _left_out(record: dict[str, Any]) -> str:
    lines = []
    for name, entry in record["variants"].items():
        lines += [f"- {name}: failed: {entry['failed']}"] if entry["failed"] else []
        lines += [f"- {name}: {note}" for note in entry["notes"]]
    for one in record["skipped"]:
        where = ", ".join(
            f"{key} {one[key]}" for key in ("threads", "batch_size", "prompt_tokens") if key in one
        )
        lines.append(f"- {one['variant']}{f' ({where})' if where else ''}: {one['reason']}")
    return "### failed or left out\n\n" + "\n".join(lines) if lines else ""
