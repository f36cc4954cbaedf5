"""One self-contained page per study: the question, the answer, then what it rests on.

No script, no font, no picture from outside: the file can be mailed, archived and opened offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import capibench
from capibench.artifacts import home
from capibench.measure.metrics import BY_NAME, METRICS
from capibench.records import RunStatus
from capibench.report import conditions
from capibench.report.figures import pictures
from capibench.report.formatting import MISSING, display_unit, format_interval, format_value
from capibench.report.results import Study, read_study
from capibench.report.runs import Combination
from capibench.report.tables import COLUMNS, LEGEND, Block, Cell, Row, blocks, choice_columns
from capibench.report.verdict import Verdict, verdict

FILE_NAME = "report.html"


def write_report(study_dir: Path) -> Path:
    """Write `report.html` into the study's folder and return its path.

    Raises:
        DataError: the folder holds no run, or a malformed one.
    """
    path = study_dir / FILE_NAME
    path.write_text(render(read_study(study_dir)), encoding="utf-8")
    return path


def render(study: Study) -> str:
    """The whole page."""
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    parts = [_header(study)]
    parts += [
        _without_result(block) if block.ground is None else _ground(study, block)
        for block in blocks(study)
    ]
    parts += [_conditions(study), _reproduce(study), _metrics(study), _footer(study)]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(study.name)} – CapiBench</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(study: Study) -> str:
    counts = [run.status for run in study.runs]
    told = ", ".join(
        f"{counts.count(status)} {status.value}" for status in RunStatus if counts.count(status)
    )
    return (
        f'<header><div class="kicker">CapiBench · study {escape(study.name)}</div>'
        f"<h1>{escape(_question(study))}</h1>"
        f'<p class="muted">{len(study.combinations)} combinations, {len(study.runs)} runs: '
        f"{escape(told)}. {escape(conditions.load_sentence(study))}</p></header>"
    )


def _question(study: Study) -> str:
    groups = [group.replace("_", " ").partition("/")[0] for group in study.varying]
    groups = list(dict.fromkeys(groups))
    if not groups:
        return "How does this stack serve this load?"
    listed = groups[0] if len(groups) == 1 else ", ".join(groups[:-1]) + " and " + groups[-1]
    return f"Which {listed} should serve this load?"


def _ground(study: Study, block: Block) -> str:
    assert block.ground is not None
    combinations = [row.combination for row in block.rows]
    decided = verdict(study, combinations)
    several = len(study.grounds) > 1
    sentence = escape(conditions.ground_sentence(study, block.ground))
    title = f"<h2>{sentence}</h2>" if several else ""
    if several:
        title += "<p class='caption'>Compared only among themselves.</p>"
    return "\n".join(
        [
            title,
            _answer(study, decided, combinations),
            "<h2>Compared</h2>",
            f'<p class="caption">{sentence}. {escape(LEGEND)}.</p>',
            _table(study, block, decided),
            _doubts(combinations),
            "<h2>Pictures</h2>",
            '<div class="figures">',
            *(
                f"<figure><h3>{escape(picture.title)}</h3>"
                f'<figcaption class="caption">{escape(picture.caption)}</figcaption>'
                f"{picture.svg}</figure>"
                for picture in pictures([c for c in combinations if c.finished])
            ),
            "</div>",
            _all_numbers(combinations),
        ]
    )


def _answer(study: Study, decided: Verdict, combinations: list[Combination]) -> str:
    reasons = "".join(f"<li>{escape(_sentence(reason))}</li>" for reason in decided.reasons)
    if decided.choice is None:
        pick, chips = "No combination can be recommended", ""
    else:
        pick = escape(decided.choice.label)
        chips = _chips({group: decided.choice.choices.get(group) for group in study.varying})
        if decided.ties:
            names = escape(", ".join(c.label for c in decided.ties))
            reasons += f"<li>A tie with it, to be chosen by other needs: {names}.</li>"
        if decided.choice.doubts:
            doubts = "; ".join(decided.choice.doubts)
            reasons += f"<li><b class='doubt'>⚠</b> {escape(_sentence(doubts))}</li>"
    ground = combinations[0].ground
    modeled = " · modeled, not measured" if ground is not None and ground.modeled else ""
    if len(combinations) == 1:
        pick += ": nothing to compare it with"
    return (
        f'<section class="answer"><div class="eyebrow">Answer{modeled}</div>'
        f'<div class="pick">{pick}</div>{chips}<ul>{reasons}</ul></section>'
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _chips(choices: Mapping[str, str | None]) -> str:
    chips = "".join(
        f'<span class="chip">{escape(group)}={escape(choice)}</span>'
        for group, choice in choices.items()
        if choice is not None
    )
    return f'<div class="chips">{chips}</div>' if chips else ""


def _table(study: Study, block: Block, decided: Verdict) -> str:
    head = "<th>combination</th>"
    head += "".join(f"<th>{escape(group)}</th>" for group in choice_columns(study))
    head += "".join(_column_head(m) for m in block.columns)
    rows = "\n".join(_table_row(study, row, decided) for row in block.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _column_head(metric: str) -> str:
    unit = display_unit(metric)
    told = f"<small>{escape(unit)}</small>" if unit else ""
    meaning = escape(BY_NAME[metric].meaning)
    return f'<th class="number" title="{meaning}">{escape(COLUMNS[metric])}{told}</th>'


def _table_row(study: Study, row: Row, decided: Verdict) -> str:
    c = row.combination
    told = []
    if row.is_baseline:
        told.append("baseline" if c.label != "baseline" else "compared against")
    if len(c.runs) > 1:
        told.append(f"{len(c.finished)} of {len(c.runs)} runs")
    if row.differences:
        told.append(row.differences)
    small = f"<small>{escape(', '.join(told))}</small>" if told else ""
    status = (
        f' <span class="status">{escape(row.status)}</span>' if row.status != "finished" else ""
    )
    baseline = study.baseline_of(c).choices
    cells = [f'<td class="label">{escape(c.label)}{status}{small}</td>']
    for group, choice in zip(choice_columns(study), row.choices, strict=False):
        kind = "choice set" if choice != baseline.get(group) else "choice"
        cells.append(f'<td class="{kind}">{escape(choice)}</td>')
    cells += [_table_cell(cell, c) for cell in row.cells]
    kind = ' class="pick"' if c is decided.choice else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _table_cell(cell: Cell, c: Combination) -> str:
    text = escape(cell.text)
    if cell.few_samples:
        text = f'<span title="too few requests beyond this percentile">~</span>{text}'
    if cell.tie:
        text = f'<span class="tie" title="not distinguishable from the baseline">≈</span> {text}'
    if cell.best:
        text = f'<span class="best">★ {text}</span>'
    if cell.doubtful:
        text += f' <span class="doubt" title="{escape("; ".join(c.doubts))}">⚠</span>'
    interval = f'<span class="interval">{escape(cell.interval)}</span>' if cell.interval else ""
    return f'<td class="number">{text}{interval}</td>'


def _doubts(combinations: list[Combination]) -> str:
    items = "".join(
        f"<li><strong>{escape(c.label)}</strong>: {escape(_sentence(doubt))}</li>"
        for c in combinations
        for doubt in c.doubts
    )
    if not items:
        return ""
    return f'<div class="notes"><b>⚠ Read these before believing a number</b><ul>{items}</ul></div>'


def _without_result(block: Block) -> str:
    rows = "".join(
        f'<tr><td class="label">{escape(row.combination.label)}</td>'
        f'<td class="status">{escape(row.status)}</td><td>{escape(row.reason)}</td></tr>'
        for row in block.rows
    )
    return (
        "<h2>Without a result</h2><p class='caption'>Impossible combinations are skipped, failed "
        "and crashed ones keep whatever rows they had finished.</p>"
        '<div class="scroll"><table><thead><tr><th>combination</th><th>status</th><th>reason</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _all_numbers(combinations: list[Combination]) -> str:
    """Every metric of every combination, folded away."""
    head = "<th>metric</th>" + "".join(
        f'<th class="number">{escape(c.label)}</th>' for c in combinations
    )
    rows = []
    for metric in METRICS:
        if all(c.number(metric.name) is None for c in combinations):
            continue
        unit = display_unit(metric.name)
        cells = "".join(_number_cell(metric.name, c) for c in combinations)
        name = escape(metric.name) + (f" <small>{escape(unit)}</small>" if unit else "")
        rows.append(f'<tr><td class="label">{name}</td>{cells}</tr>')
    return (
        "<details><summary>Every metric of every combination</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _number_cell(metric: str, c: Combination) -> str:
    v = c.value(metric)
    if v.value is None:
        why = escape(", ".join(v.flags).replace("_", " "))
        return f'<td class="number" title="{why}">{MISSING}</td>'
    interval = format_interval(metric, v.low, v.high)
    told = f'<span class="interval">{escape(interval)}</span>' if interval else ""
    flags = escape(", ".join(v.flags).replace("_", " "))
    mark = f' <span class="doubt" title="{flags}">·</span>' if flags else ""
    return f'<td class="number">{escape(format_value(metric, v.value))}{mark}{told}</td>'


def _conditions(study: Study) -> str:
    return "<h2>Under these conditions</h2>" + _definitions(conditions.conditions(study))


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
        + "</dl>"
    )


def _reproduce(study: Study) -> str:
    command = study.command or "capibench run " + " ".join(
        study.runs[0].document["cell"]["overrides"]
    )
    code = conditions.code_sentence(study)
    folder = study.folder.resolve()
    named = folder.name if folder.parent == (home() / "studies").resolve() else str(study.folder)
    return (
        "<h2>Again</h2>"
        f"<p>{escape(code)} Every run's folder holds its resolved configuration and versions "
        "(<code>run.json</code>) and one row per request (<code>records.parquet</code>); every "
        "number above is derived from them.</p>"
        f"<pre><code>{escape(command.strip())}\ncapibench report {escape(named)}"
        "\ncapibench ui</code></pre>"
    )


def _metrics(study: Study) -> str:
    """Meanings of the metrics that occur, from the table that computed them."""
    rows = "".join(
        f'<tr><td class="label">{escape(metric.name)}</td><td>{escape(metric.unit)}</td>'
        f"<td>{escape(metric.better)}</td><td>{escape(metric.meaning)}</td></tr>"
        for metric in METRICS
        if not metric.name.startswith("latency.stage.")
        or any(c.number(metric.name) is not None for c in study.combinations)
    )
    return (
        "<h2>What the names mean</h2>"
        "<details><summary>Metric, unit, better direction, meaning</summary>"
        '<div class="scroll"><table><thead><tr><th>metric</th><th>unit</th><th>better</th>'
        f"<th>meaning</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _footer(study: Study) -> str:
    ended = max((str(run.document["ended_at"]) for run in study.runs), default="")
    return (
        f"<footer>Last run ended {escape(ended[:19].replace('T', ' '))} UTC. Written by CapiBench "
        f"{escape(capibench.__version__)}.</footer>"
    )
