"""What a reader sees is what the runs hold, and the page needs nothing but itself."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from capibench.errors import DataError
from capibench.report.figures import pictures
from capibench.report.formatting import format_value
from capibench.report.html import render, write_report
from capibench.report.pairing import paired_e2e_s
from capibench.report.results import read_study
from capibench.report.tables import COLUMNS, blocks, markdown_table, terminal_table
from capibench.report.verdict import difference, verdict

STUDY = Path(__file__).parents[1] / "fixtures" / "study"
SCHEMA = Path(__file__).parents[2] / "capibench" / "run_schema.json"


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    """A copy of the fixture that a test may change."""
    return Path(shutil.copytree(STUDY, tmp_path / "study"))


def change(run_dir: Path, **changes: Any) -> None:
    """Replace values of a run.json; `a__b` is the key b of a."""
    document = json.loads((run_dir / "run.json").read_text())
    for path, value in changes.items():
        *above, last = path.split("__")
        node = document
        for key in above:
            node = node[key]
        node[last] = value
    (run_dir / "run.json").write_text(json.dumps(document))


@pytest.mark.parametrize("path", sorted(STUDY.glob("*/run.json")), ids=lambda p: p.parent.name)
def test_fixture_fits_the_published_schema(path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(path.read_text())
    jsonschema.validate(document, schema)
    for key in schema["required"]:
        broken = copy.deepcopy(document)
        del broken[key]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_schema_refuses_an_unknown_value_without_a_reason() -> None:
    schema = json.loads(SCHEMA.read_text())
    document = json.loads((STUDY / "baseline-r0" / "run.json").read_text())
    document["metrics"]["goodput_per_s"] |= {"value": None, "low": None, "high": None, "flags": []}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_page_shows_every_number_of_every_run() -> None:
    page = render(read_study(STUDY))
    for run in read_study(STUDY).runs:
        for metric in COLUMNS:
            value = run.value(metric).value
            if value is not None:
                assert format_value(metric, value) in page, (run.run_id, metric)
        if run.reason is not None:
            assert run.reason in page


def test_page_stands_alone(study_dir: Path) -> None:
    page = write_report(study_dir)
    text = page.read_text()
    assert page == study_dir / "report.html"
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", text)
    assert not re.findall(r"url\((?!#)|@import|<script|<link", text)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_page_escapes_what_runs_say(study_dir: Path) -> None:
    change(study_dir / "broken-r0", reason="<script>alert(1)</script>")
    assert "<script>" not in render(read_study(study_dir))


def test_the_same_runs_give_the_same_page() -> None:
    assert render(read_study(STUDY)) == render(read_study(STUDY))


def test_figures_are_described_and_labelled() -> None:
    study = read_study(STUDY)
    drawn = pictures([c for c in study.combinations if c.finished])
    assert len(drawn) == 6
    for picture in drawn:
        assert 'role="img" aria-label="' in picture.svg
        assert picture.caption
        for c in study.combinations:
            if c.finished:
                assert f">{c.label}<" in picture.svg, (picture.title, c.label)
    units = " ".join(picture.svg for picture in drawn)
    for unit in ("(ms", "(MB)", "requests/s"):
        assert unit in units


def test_terminal_table_fits_and_names_every_combination() -> None:
    study = read_study(STUDY)
    out = io.StringIO()
    Console(file=out, width=160).print(terminal_table(study, 160))
    text = out.getvalue()
    for c in study.combinations:
        assert c.label in text
    assert "made to fail" in text
    assert "…" not in text  # nothing was cut off


def test_markdown_table_has_one_row_per_combination() -> None:
    study = read_study(STUDY)
    text = markdown_table(study)
    for c in study.combinations:
        assert f"\n| {c.label}" in text
    widths = {line.count("|") for line in text.split("**Without")[0].splitlines() if "|" in line}
    assert len(widths) == 1


def test_failed_and_skipped_runs_are_apart_from_the_ranking() -> None:
    *ranked, without = blocks(read_study(STUDY))
    assert {row.status for row in without.rows} == {"failed", "skipped"}
    assert {row.status for block in ranked for row in block.rows} == {"finished"}


def test_another_corpus_is_never_compared(study_dir: Path) -> None:
    change(study_dir / "cache-r0", hashes__corpus="another")
    study = read_study(study_dir)
    by_label = {c.label: c for c in study.combinations}
    assert len(study.grounds) == 2
    assert difference(by_label["baseline"], by_label["cache"]) is None
    assert [len(block.rows) for block in blocks(study)] == [5, 1, 2]


def test_modeled_is_never_ranked_with_measured(study_dir: Path) -> None:
    change(study_dir / "cache-r0", modeled=True)
    study = read_study(study_dir)
    assert [block.ground.modeled for block in blocks(study) if block.ground] == [False, True]
    page = render(study)
    assert "Modeled under real time" in page
    assert "Answer · modeled, not measured" in page


def test_a_combination_that_failed_requests_is_not_recommended(study_dir: Path) -> None:
    change(study_dir / "everything-r0", metrics__success_rate__value=0.99)
    study = read_study(study_dir)
    decided = verdict(study, [c for c in study.combinations if c.finished])
    assert decided.choice is not None
    assert decided.choice.label != "everything"
    assert any("everything failed requests" in reason for reason in decided.reasons)


def test_equal_runs_are_ties_and_nothing_is_best(study_dir: Path) -> None:
    for run_dir in study_dir.iterdir():
        if run_dir.is_dir() and run_dir.name != "baseline-r0":
            shutil.rmtree(run_dir)
    shutil.copytree(study_dir / "baseline-r0", study_dir / "twin-r0")
    change(study_dir / "twin-r0", name="twin", run_id="twin-r0", cell__choices__cache="ttl")
    study = read_study(study_dir)
    (block,) = blocks(study)
    assert not any(cell.best for row in block.rows for cell in row.cells)
    decided = verdict(study, list(study.combinations))
    assert len(decided.ties) == 1


def test_repeats_are_one_row_with_the_envelope_of_their_intervals(study_dir: Path) -> None:
    shutil.copytree(study_dir / "baseline-r0", study_dir / "baseline-r1")
    change(
        study_dir / "baseline-r1",
        run_id="baseline-r1",
        cell__repeat=1,
        metrics__goodput_per_s={"value": 3.0, "low": 2.0, "high": 4.0, "n": 150, "flags": []},
    )
    study = read_study(study_dir)
    baseline = study.baseline
    assert baseline is not None
    assert baseline.label == "baseline"
    assert len(baseline.finished) == 2
    first = study.baseline.finished[0].value("goodput_per_s")
    merged = baseline.value("goodput_per_s")
    assert merged.low == 2.0
    assert merged.high == first.high
    assert merged.value == pytest.approx((first.value + 3.0) / 2)


def test_only_the_same_requests_are_paired(study_dir: Path) -> None:
    study = read_study(study_dir)
    by_label = {c.label: c for c in study.combinations}
    a, b = paired_e2e_s(by_label["baseline"].finished, by_label["cache"].finished)
    assert len(a) == len(b) == 150
    change(study_dir / "cache-r0", hashes__plan="other requests")
    by_label = {c.label: c for c in read_study(study_dir).combinations}
    a, b = paired_e2e_s(by_label["baseline"].finished, by_label["cache"].finished)
    assert len(a) == len(b) == 0


def test_unreadable_folders_are_named(tmp_path: Path, study_dir: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json in it"):
        read_study(tmp_path / "nothing")
    change(study_dir / "cache-r0", schema_version=2)
    with pytest.raises(DataError, match=r"cache-r0.*schema_version: got 2; expected 1"):
        read_study(study_dir)
    (study_dir / "cache-r0" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"cache-r0.*line 1: not JSON"):
        read_study(study_dir)


def test_labels_name_only_what_differs(study_dir: Path) -> None:
    for run_dir in study_dir.glob("*-r0"):
        overrides = json.loads((run_dir / "run.json").read_text())["cell"]["overrides"]
        change(run_dir, name="run", cell__overrides=[*overrides, "load.num_requests=150"])
    labels = {c.label for c in read_study(study_dir).combinations if c.finished}
    assert labels == {"baseline", "lru", "greedy", "int8", "hnsw", "hnsw + int8 + greedy + lru"}
    change(study_dir / "cache-r0", cell__overrides=["cache=lru", "load.num_requests=99"])
    labels = {c.label for c in read_study(study_dir).combinations if c.finished}
    assert "lru, load.num_requests=99" in labels


def test_an_earlier_attempt_inside_a_run_is_not_a_run(study_dir: Path) -> None:
    shutil.copytree(study_dir / "broken-r0", study_dir / "cache-r0" / "attempt-1")
    assert len(read_study(study_dir).runs) == len(read_study(STUDY).runs)
