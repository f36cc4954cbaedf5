"""A replay for people (tables), for programs (JSON, CSV) and as a page with pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import capibench
from capibench.cache.replay.figures import AT_MOST, BELADY, BEST, INFINITE, bound_name, pictures
from capibench.cache.replay.replay import Outcome, Replayed
from capibench.report import html as report_html
from capibench.run_folder import write_json

_MISSING = "–"
_CSV = (
    "policy", "capacity_bytes", "capacity_share", "lookups", "hits", "hit_ratio", "miss_ratio",
    "byte_hit_ratio", "seconds_saved", "saved_share", "below_bound", "requests_per_s",
)  # fmt: skip


def print_tables(replayed: Replayed, console: Console) -> None:
    """Hit ratios, what is missing to the best possible, and seconds saved where costs are known."""
    console.print(f"{replayed.trace}: {_what_was_replayed(replayed)}")
    if replayed.left_out:
        console.print(f"left out: {replayed.left_out}")
    _print(console, "hit ratio, %", _hits_table(replayed))
    bound = bound_name(replayed)
    if bound is not None:
        goal = "the best possible" if bound == BEST else "what is possible at most"
        table = _table(replayed, lambda outcome: outcome.below_bound)
        _print(console, f"points of hit ratio below {goal}", table)
    if replayed.infinite.saved_share is not None:
        title = "seconds saved, % of what everything takes without a cache"
        _print(console, title, _seconds_table(replayed))
    if bound == AT_MOST or replayed.ceilings[0].saved_share is not None:
        console.print(f"{AT_MOST}: no policy has more, and perhaps none has as much")


def _what_was_replayed(replayed: Replayed) -> str:
    warmup = replayed.warmup_accesses
    return (
        f"{replayed.num_accesses:,} accesses to {replayed.num_keys:,} keys, "
        f"working set {size_text(replayed.working_set_bytes, replayed)}"
        + (f"; the first {warmup:,} are not counted" if warmup else "")
    )


def _print(console: Console, title: str, table: Table) -> None:
    console.print(title, style="italic")  # a table's own title is wrapped to its width
    console.print(table)


def write_files(replayed: Replayed, folder: Path) -> list[Path]:
    """`replay.json`, `replay.csv` and `replay.html` in `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, csv_path, page = (folder / f"replay.{end}" for end in ("json", "csv", "html"))
    write_json(json_path, as_json(replayed))
    with csv_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _CSV, extrasaction="ignore")
        writer.writeheader()
        for row in _rows(replayed):
            writer.writerow(
                asdict(row)
                | {
                    "capacity_share": row.capacity_bytes / replayed.working_set_bytes,
                    "miss_ratio": 1 - row.hit_ratio,
                }
            )
    page.write_text(_page(replayed), encoding="utf-8")
    return [json_path, csv_path, page]


def as_json(replayed: Replayed) -> dict[str, object]:
    """The document of `replay.json`; versioned, as all that CapiBench writes."""
    document = replayed.as_dict()
    for outcome in document["outcomes"]:
        for change in outcome["chosen"] or ():
            if change["num_accesses"] == 0:
                change["now"] = None  # before the first access
    return {"schema_version": 1, "capibench": capibench.__version__, **document}


def size_text(num_bytes: int, replayed: Replayed) -> str:
    """Bytes as people read them; entries where the trace has no sizes."""
    if replayed.infinite.byte_hit_ratio is None:
        return f"{num_bytes:,} keys"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} B"


def _rows(replayed: Replayed) -> list[Outcome]:
    beladys = [ceiling.belady for ceiling in replayed.ceilings if ceiling.belady is not None]
    return [*replayed.outcomes, *beladys, replayed.infinite]


def _hits_table(replayed: Replayed) -> Table:
    slowest = {
        name: min(outcome.requests_per_s or math.inf for outcome in outcomes)
        for name, outcomes in _by_policy(replayed).items()
    }
    table = _table(
        replayed,
        lambda outcome: outcome.hit_ratio,
        {name: f"{speed:,.0f}" for name, speed in slowest.items()},
    )
    table.add_section()
    bound = bound_name(replayed)
    if bound is not None:
        if bound != BEST:
            beladys = [c.belady.hit_ratio for c in replayed.ceilings if c.belady is not None]
            table.add_row(BELADY, *map(_percent, beladys))
        table.add_row(bound, *(_percent(ceiling.hit_ratio) for ceiling in replayed.ceilings))
    infinite = _percent(replayed.infinite.hit_ratio)
    table.add_row(INFINITE, *(infinite for _ in replayed.ceilings))
    return table


def _seconds_table(replayed: Replayed) -> Table:
    table = _table(replayed, lambda outcome: outcome.saved_share)
    table.add_section()
    bounds = [ceiling.saved_share for ceiling in replayed.ceilings]
    if None not in bounds:
        table.add_row(AT_MOST, *map(_percent, bounds))
    infinite = _percent(replayed.infinite.saved_share)
    table.add_row(INFINITE, *(infinite for _ in bounds))
    return table


def _table(
    replayed: Replayed,
    value: Callable[[Outcome], float | None],
    speeds: Mapping[str, str] | None = None,
) -> Table:
    """One row per policy, one column per size, and the requests/s of the slowest size."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0))
    table.add_column("policy", no_wrap=True)
    for ceiling in replayed.ceilings:
        share = 100 * ceiling.capacity_bytes / replayed.working_set_bytes
        size = size_text(ceiling.capacity_bytes, replayed)
        table.add_column(f"{share:.3g} %\n{size}", justify="right", no_wrap=True)
    if speeds is not None:
        table.add_column("requests/s", justify="right", no_wrap=True)
    for name, outcomes in _by_policy(replayed).items():
        cells = [_percent(value(outcome)) for outcome in outcomes]
        table.add_row(name, *cells, *([] if speeds is None else [speeds[name]]))
    return table


def _by_policy(replayed: Replayed) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in replayed.outcomes:
        found.setdefault(outcome.policy, []).append(outcome)
    return found


def _percent(share: float | None) -> str:
    return _MISSING if share is None else f"{100 * share:.1f}"


def _page(replayed: Replayed) -> str:
    css = (Path(report_html.__file__).parent / "page.css").read_text(encoding="utf-8")
    figures = "".join(
        f"<figure><h3>{escape(picture.title)}</h3>"
        f'<figcaption class="caption">{escape(picture.caption)}</figcaption>{picture.svg}</figure>'
        for picture in pictures(replayed)
    )
    title = f"Cache replay of {escape(replayed.trace)}"
    left_out = f"Left out: {escape(replayed.left_out)}. " if replayed.left_out else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} – CapiBench</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<header><div class="kicker">CapiBench · cache replay</div><h1>{title}</h1>'
        f'<p class="muted">{_what_was_replayed(replayed)}. {left_out}The numbers are in '
        f'replay.csv and replay.json.</p></header>\n<div class="figures">{figures}</div>\n'
        "</main>\n</body>\n</html>\n"
    )


def to_json_line(replayed: Replayed) -> str:
    """The document in one line, for standard output."""
    return json.dumps(as_json(replayed), allow_nan=False)
