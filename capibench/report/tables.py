"""The comparison as a table: in the terminal, in Markdown and (as cells) in the HTML page.

What varies stands first, then the headline metrics with their intervals. `≈` marks a value that
does not differ from the baseline's, a star the best one, and only where it is not a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capibench.measure.metrics import BY_NAME
from capibench.records import RunStatus
from capibench.report.conditions import ground_sentence
from capibench.report.formatting import MISSING, display_unit, format_interval, format_value
from capibench.report.results import Study
from capibench.report.runs import Combination, Ground
from capibench.report.verdict import best, is_bounded, is_tie

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

COLUMNS: dict[str, str] = {
    "success_rate": "answered",
    "goodput_per_s": "goodput",
    "latency.e2e.p50_ms": "p50",
    "latency.e2e.p95_ms": "p95",
    "latency.e2e.p99_ms": "p99",
    "throughput.requests_per_s": "completed",
    "cache.result.hit_rate": "cache hits",
    "cache.result.belady_hit_rate": "possible hits",
    "quality.recall_at_k": "recall@k",
    "quality.answer_f1": "answer F1",
    "quality.perplexity": "perplexity",
    "model.compression_ratio": "compression",
    "memory.peak_bytes": "peak memory",
}
_SHORT = {
    "success_rate": "ans-\nwered",
    "goodput_per_s": "good-\nput",
    "throughput.requests_per_s": "done",
    "cache.result.hit_rate": "cache\nhits",
    "cache.result.belady_hit_rate": "poss-\nible",
    "quality.recall_at_k": "recall\n@k",
    "quality.answer_f1": "answer\nF1",
    "quality.perplexity": "perpl.",
    "model.compression_ratio": "com-\npress.",
    "memory.peak_bytes": "peak\nmemory",
}
# In a terminal only the figures that decide have room for their intervals.
_INTERVAL_SHOWN = {
    "goodput_per_s",
    "latency.e2e.p50_ms",
    "latency.e2e.p95_ms",
    "latency.e2e.p99_ms",
}
MAX_CHOICE_COLUMNS = 3
MIN_WIDTH_FOR_INTERVALS = 140
LEGEND = (
    "[low, high]: 95 % interval, ?: too few requests to bound it · ≈ not distinguishable from the "
    "baseline · ★ best, and no tie · ~ too few requests beyond this percentile · ⚠ read the notes "
    "· – not measured"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of the table."""

    text: str
    interval: str = ""
    tie: bool = False
    best: bool = False
    doubtful: bool = False
    few_samples: bool = False

    def plain(self) -> str:
        mark = (
            ("≈ " if self.tie else "")
            + ("~" if self.few_samples else "")
            + self.text
            + (" ★" if self.best else "")
        )
        return mark + (" ⚠" if self.doubtful else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One combination."""

    combination: Combination
    choices: tuple[str, ...]  # of the varying groups
    differences: str  # those that are not the baseline's, in a line
    cells: tuple[Cell, ...]  # empty where the combination has no result
    status: str
    reason: str
    is_baseline: bool


@dataclass(frozen=True, slots=True)
class Block:
    """The combinations that may be compared with each other."""

    ground: Ground | None  # None: those without a result
    columns: tuple[str, ...]  # metric names
    rows: tuple[Row, ...]


def heading(metric: str) -> str:
    """Column title with its unit."""
    unit = display_unit(metric)
    return COLUMNS[metric] + (f" ({unit})" if unit else "")


def blocks(study: Study) -> list[Block]:
    """One block per ground, and one for what has no result."""
    made = [
        _block(study, ground, [c for c in study.combinations if c.ground == ground])
        for ground in study.grounds
    ]
    without = [c for c in study.combinations if c.ground is None]
    if without:
        made.append(Block(None, (), tuple(_row(study, c, (), {}) for c in without)))
    return made


def _block(study: Study, ground: Ground, combinations: list[Combination]) -> Block:
    columns = tuple(
        metric for metric in COLUMNS if any(c.number(metric) is not None for c in combinations)
    )
    winners: dict[str, Combination] = {}
    for metric in columns:
        if BY_NAME[metric].better == "neither" or len(combinations) < 2:
            continue
        # The latency of what failed requests is never the best (METHOD, rule 3).
        able = [c for c in combinations if not (_is_latency(metric) and c.failed_requests)]
        leader, ties = best(able, metric)
        if leader is None or ties or not is_bounded(leader, metric):
            continue
        if not _doubtful(leader, metric):
            winners[metric] = leader
    return Block(ground, columns, tuple(_row(study, c, columns, winners) for c in combinations))


def _row(
    study: Study, c: Combination, columns: tuple[str, ...], winners: dict[str, Combination]
) -> Row:
    baseline = study.baseline_of(c)
    is_baseline = c is baseline
    cells = []
    for metric in columns:
        value = c.value(metric)
        tie = False
        if not is_baseline and value.value is not None:
            # An equal value needs no mark.
            same = value.value == baseline.number(metric)
            tie = not same and bool(is_tie(baseline, c, metric))
        cells.append(
            Cell(
                format_value(metric, value.value),
                format_interval(metric, value.low, value.high)
                if value.value is not None and value.low != value.high and metric != "success_rate"
                else "",
                tie,
                winners.get(metric) is c,
                value.value is not None and _doubtful(c, metric),
                value.value is not None and "few_samples" in value.flags,
            )
        )
    return Row(
        c,
        tuple(c.choices.get(group, MISSING) for group in study.varying),
        _differences(study, c),
        tuple(cells),
        str(c.status),
        c.reason or "",
        is_baseline,
    )


def choice_columns(study: Study) -> tuple[str, ...]:
    """The varying groups, where there is room for a column each; of many, a line under each
    combination's name tells what differs from the baseline."""
    return study.varying if len(study.varying) <= MAX_CHOICE_COLUMNS else ()


def _differences(study: Study, c: Combination) -> str:
    if choice_columns(study):
        return ""
    base = study.baseline_of(c).choices
    set_here = [c.choices.get(g) for g in study.varying if c.choices.get(g) != base.get(g)]
    return " · ".join(choice for choice in set_here if choice is not None)


def _doubtful(c: Combination, metric: str) -> bool:
    if metric == "success_rate":
        return c.failed_requests
    return _is_latency(metric) and (not c.latency_valid or c.saturated or c.failed_requests)


def _is_latency(metric: str) -> bool:
    return metric.startswith(("latency.", "ttft.", "tpot."))


def terminal_table(study: Study, width: int) -> Group:
    """The comparison for rich's console of `width` characters; intervals need a wide one."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = [
        _rich_without(block)
        if block.ground is None
        else _rich(study, block, intervals=width >= MIN_WIDTH_FOR_INTERVALS)
        for block in blocks(study)
    ]
    for c in study.combinations:
        parts += [Text(f"⚠ {c.label}: {doubt}", style="yellow") for doubt in c.doubts]
    parts.append(Text(LEGEND, style="dim"))
    return Group(*parts)


def _rich(study: Study, block: Block, *, intervals: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    assert block.ground is not None
    title = ground_sentence(study, block.ground)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("combination", no_wrap=True, style="bold")
    for position, group in enumerate(choice_columns(study)):
        longest = max(len(row.choices[position]) for row in block.rows)
        table.add_column(_hyphenated(group), overflow="fold", min_width=min(longest, 10))
    for metric in block.columns:
        unit = display_unit(metric)
        name = _SHORT.get(metric, COLUMNS[metric])
        table.add_column(f"{name}\n{unit}" if unit else name, justify="right", no_wrap=True)
    for row in block.rows:
        cells: list[Text] = []
        for metric, cell in zip(block.columns, row.cells, strict=True):
            text = Text(cell.plain(), style="bold green" if cell.best else "")
            if intervals and cell.interval and metric in _INTERVAL_SHOWN:
                text.append(f"\n{cell.interval}", style="dim not bold")
            cells.append(text)
        label = Text(row.combination.label)
        label.append(f" ({row.status})" if row.status != "finished" else "")
        if intervals and row.differences:
            label.append(f"\n{row.differences}", style="dim not bold")
        choices = row.choices if choice_columns(study) else ()
        table.add_row(label, *choices, *cells)
    return table


def _hyphenated(group: str) -> str:
    """A heading as narrow as the choices below it."""
    name = group.rpartition("/")[2].replace("_", " ")
    return name if len(name) <= 9 else f"{name[:6]}-\n{name[6:]}"


def _rich_without(block: Block) -> Table:
    from rich.table import Table

    table = Table(title="Without a result", title_justify="left", padding=(0, 1))
    table.add_column("combination", style="bold")
    table.add_column("status", style="red")
    table.add_column("reason", overflow="fold")
    for row in block.rows:
        table.add_row(row.combination.label, row.status, row.reason)
    return table


def markdown_table(study: Study) -> str:
    """The same for a README or an experiment's record."""
    lines: list[str] = []
    for block in blocks(study):
        if block.ground is None:
            lines += [
                "**Without a result**",
                "",
                "| combination | status | reason |",
                "|---|---|---|",
            ]
            lines += [
                f"| {_md(r.combination.label)} | {r.status} | {_md(r.reason)} |" for r in block.rows
            ]
        else:
            titles = ["combination", *study.varying, *map(heading, block.columns)]
            lines += [
                f"**{ground_sentence(study, block.ground)}**",
                "",
                "| " + " | ".join(titles) + " |",
            ]
            lines.append("|" + "---|" * (1 + len(study.varying)) + "---:|" * len(block.columns))
            for row in block.rows:
                cells = [f"{c.plain()} {c.interval}".strip() for c in row.cells]
                label = row.combination.label
                if row.status != RunStatus.FINISHED:
                    label += f" ({row.status})"
                lines.append("| " + " | ".join([_md(label), *row.choices, *cells]) + " |")
        lines.append("")
    notes = [f"- ⚠ {c.label}: {doubt}" for c in study.combinations for doubt in c.doubts]
    return "\n".join([*lines, *notes, *([""] if notes else []), LEGEND, ""])


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
