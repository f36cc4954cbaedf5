"""The picks as a table, and the promises of the index one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def table(picks: list[Row]) -> str:
    """Markdown, a row per pick."""
    head = "data | batch | strategy | pick | recall@10 | x Flat | ms | MB | Flat MB | tuning s"
    lines = [
        f"| {head} | unbeaten |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r['data']}{'' if r['real'] else ' (made)'} | {r['batch_size']} | {r['strategy']} | "
        f"{r['pick']} | {r['recall']:.4f} [{r['recall_low']:.4f}, {r['recall_high']:.4f}] | "
        f"{r['times_as_fast_as_flat']:.1f} [{r['times_low']:.1f}, {r['times_high']:.1f}] | "
        f"{r['ms']:.3f} | {r['memory_bytes'] / 1e6:.2f} | {r['flat_memory_bytes'] / 1e6:.1f} | "
        f"{r['tuning_s']:.1f} | {unbeaten(r)} |"
        for r in picks
    ]
    return "\n".join(lines) + "\n"


def unbeaten(pick: Row) -> str:
    """Yes, or by what it is beaten, or may be: latencies were not told apart."""
    if pick["beaten_by"]:
        return f"no: {pick['beaten_by']}"
    return f"perhaps not: {pick['perhaps_beaten_by']}" if pick["perhaps_beaten_by"] else "yes"


PROMISES: tuple[tuple[str, str | None, Callable[[Row], bool]], ...] = (
    ("speed: recall at least 0.95", "speed", lambda r: r["recall"] >= 0.95),
    ("speed: 20 times as fast as Flat", "speed", lambda r: r["times_as_fast_as_flat"] >= 20),
    ("tuning within 60 s", None, lambda r: r["tuning_s"] <= 60),
    ("nothing that was built beats the pick", None, lambda r: not r["beaten_by"]),
    ("nothing even may beat it", None, lambda r: unbeaten(r) == "yes"),
    (
        "memory: a twentieth of Flat's bytes",
        "memory",
        lambda r: r["memory_bytes"] <= r["flat_memory_bytes"] / 20,
    ),
    ("memory: recall at least 0.90", "memory", lambda r: r["recall"] >= 0.90),
    ("accuracy: recall at least 0.99", "accuracy", lambda r: r["recall"] >= 0.99),
)


def verdicts(picks: list[Row]) -> str:
    """Each promise with the rows that it is about; one that no row is about says so."""
    lines = []
    for data in dict.fromkeys(r["data"] for r in picks if r["real"]):
        about_data = [r for r in picks if r["data"] == data and r["batch_size"] == 1]
        for text, strategy, holds in PROMISES:
            about = [r for r in about_data if strategy in (None, r["strategy"])]
            kept = sum(holds(r) for r in about)
            state = f"{kept} of {len(about)}" if about else "nothing measured"
            lines.append(f"- {data}, single queries: {text}: {state}")
    single = [r for r in picks if r["batch_size"] == 1]
    structures = {structure_of(r["pick"]) for r in single}
    lines.append(f"- different choices over all data sets, single queries: {choices(single)}")
    lines.append(f"- of different structures: {len(structures)} ({', '.join(sorted(structures))})")
    return "\n".join(lines) + "\n"


def choices(rows: list[Row]) -> str:
    """How many picks differ, over all data sets and on each."""
    per_data = [
        f"{len({r['pick'] for r in rows if r['data'] == data})} on {data}"
        for data in dict.fromkeys(r["data"] for r in rows)
    ]
    return f"{len({r['pick'] for r in rows})} ({', '.join(per_data)})"


def structure_of(pick: str) -> str:
    """The pick without its query parameters: what was built."""
    searched = ("nprobe=", "rerank=", "ef_search=")
    return " ".join(part for part in pick.split() if not part.startswith(searched))
