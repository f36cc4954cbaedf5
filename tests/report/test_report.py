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
from capibench.report.conditions import conditions
from capibench.report.figures import pictures
from capibench.report.formatting import format_value
from capibench.report.html import render, write_report
from capibench.report.pairing import paired_e2e_s
from capibench.report.results import read_study
from capibench.report.scatter import front_points
from capibench.report.tables import COLUMNS, blocks, markdown_table, terminal_table
from capibench.report.verdict import difference, is_tie, verdict

STUDY = Path(__file__).parents[1] / "fixtures" / "study"
SCHEMA = Path(__file__).parents[2] / "capibench" / "run_schema.json"


@pytest.fixture(scope="module")
def page() -> str:
    """The fixture as it is, drawn once: figures take seconds."""
    return render(read_study(STUDY))


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


def test_page_shows_every_number_of_every_run(page: str) -> None:
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


def test_the_same_runs_give_the_same_page(page: str) -> None:
    assert render(read_study(STUDY)) == page


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


def test_a_parts_own_choice_that_all_who_have_it_share_is_no_difference(study_dir: Path) -> None:
    with_cache = [path for path in study_dir.glob("*/run.json") if has_cache(path)]
    assert with_cache
    for path in with_cache:
        change(path.parent, **{"cell__choices__cache/misses": "alone"})
    assert "cache" in read_study(study_dir).varying
    assert "cache/misses" not in read_study(study_dir).varying


def has_cache(path: Path) -> bool:
    return bool(json.loads(path.read_text())["cell"]["choices"].get("cache") != "none")


def only(study_dir: Path, *names: str) -> None:
    for run_dir in study_dir.iterdir():
        if run_dir.is_dir() and run_dir.name.removesuffix("-r0") not in names:
            shutil.rmtree(run_dir)


def test_other_seeds_and_rates_are_other_rows_in_other_blocks(study_dir: Path) -> None:
    only(study_dir, "baseline", "cache")
    shutil.copytree(study_dir / "baseline-r0", study_dir / "seed-r0")
    change(study_dir / "seed-r0", config__seed=2, cell__overrides=["seed=2"])
    shutil.copytree(study_dir / "baseline-r0", study_dir / "rate-r0")
    change(study_dir / "rate-r0", config__load__rate_per_s=9.0)
    shutil.copytree(study_dir / "baseline-r0", study_dir / "slo-r0")
    change(study_dir / "slo-r0", config__slo__ttft_ms=5.0, cell__overrides=["slo.ttft_ms=5"])
    study = read_study(study_dir)
    assert len(study.combinations) == 5
    assert len({c.label for c in study.combinations}) == 5
    assert {"baseline, seed=2", "baseline, slo.ttft_ms=5"} <= {c.label for c in study.combinations}
    ranked = blocks(study)
    assert sorted(len(block.rows) for block in ranked) == [1, 1, 1, 2]
    assert all(sum(row.is_baseline for row in block.rows) == 1 for block in ranked)
    text = markdown_table(study)
    for told in ("rate per s 9.0", "seed 2", "first token within 5 ms"):
        assert told in text


def test_what_is_tracked_or_called_otherwise_is_the_same_combination(study_dir: Path) -> None:
    only(study_dir, "baseline")
    shutil.copytree(study_dir / "baseline-r0", study_dir / "baseline-r1")
    change(study_dir / "baseline-r1", config__name="again", config__repeat=1, cell__repeat=1)
    assert len(read_study(study_dir).combinations) == 1


def test_latency_of_what_failed_requests_is_doubtful_and_never_best(study_dir: Path) -> None:
    only(study_dir, "baseline", "everything", "cache")
    change(study_dir / "everything-r0", metrics__success_rate__value=0.99)
    change(study_dir / "baseline-r0", metrics__success_rate__value=0.99)
    study = read_study(study_dir)
    (block,) = blocks(study)
    assert block.rows[0].is_baseline
    assert block.rows[0].combination.label == "baseline"
    for row in block.rows:
        for metric, cell in zip(block.columns, row.cells, strict=True):
            if metric.startswith("latency.") and row.combination.label != "cache":
                assert cell.doubtful
                assert not cell.best
    for c in study.combinations:
        assert c.failed_requests == (c.label != "cache")
    by_label = {c.label: on for c, _, _, on in front_points(list(study.combinations))}
    assert by_label == {"baseline": False, "everything": False, "cache": True}


def test_an_open_end_of_one_repeat_leaves_the_envelope_open(study_dir: Path) -> None:
    shutil.copytree(study_dir / "baseline-r0", study_dir / "baseline-r1")
    p99 = {"value": 900.0, "low": 800.0, "high": None, "n": 150, "flags": ["few_samples"]}
    change(study_dir / "baseline-r1", cell__repeat=1, metrics__goodput_per_s=p99)
    baseline = read_study(study_dir).baseline
    assert baseline is not None
    assert baseline.value("goodput_per_s").low is not None
    assert baseline.value("goodput_per_s").high is None


def test_a_value_without_an_interval_tells_nothing_apart(study_dir: Path) -> None:
    only(study_dir, "baseline", "int8")
    for name, value in (("baseline", 13.0), ("int8", 99.0)):
        document = without_interval(value)
        change(study_dir / f"{name}-r0", **{"metrics__quality.perplexity": document})
    study = read_study(study_dir)
    baseline, int8 = study.combinations
    assert is_tie(baseline, int8, "quality.perplexity") is True
    assert is_tie(baseline, int8, "model.bytes") is False  # counted, so exact
    (block,) = blocks(study)
    column = block.columns.index("quality.perplexity")
    assert not any(row.cells[column].best for row in block.rows)


def test_memory_of_repeated_runs_has_the_range_of_the_runs(study_dir: Path) -> None:
    only(study_dir, "baseline", "int8")
    for name, values in (("baseline", (6.0, 7.0)), ("int8", (3.0, 4.0))):
        shutil.copytree(study_dir / f"{name}-r0", study_dir / f"{name}-r1")
        for repeat, value in enumerate(values):
            change(
                study_dir / f"{name}-r{repeat}",
                cell__repeat=repeat,
                **{"metrics__memory.peak_bytes": without_interval(value)},
            )
    baseline, int8 = read_study(study_dir).combinations
    assert is_tie(baseline, int8, "memory.peak_bytes") is False


def without_interval(value: float) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": None, "flags": []}


def test_a_tail_of_few_samples_is_marked_in_every_table(page: str) -> None:
    study = read_study(STUDY)
    (block, _) = blocks(study)
    column = block.columns.index("latency.e2e.p99_ms")
    assert all(row.cells[column].few_samples for row in block.rows)
    assert block.rows[0].cells[column].plain().startswith("~")
    assert "~ too few" in markdown_table(study)
    assert "~</span>" in page


@pytest.mark.parametrize(
    ("metric", "value", "low", "high"),
    [
        ("quality.recall_at_k", 0.5, 0.45, 0.55),
        ("quality.answer_f1", 0.01, 0.005, 0.02),
        ("quality.perplexity_ratio", 1.05, 1.03, 1.07),
    ],
)
def test_lost_quality_is_recommended_only_for_want_of_a_better(
    study_dir: Path, metric: str, value: float, low: float, high: float
) -> None:
    study = read_study(study_dir)
    first = verdict(study, [c for c in study.combinations if c.finished]).choice
    assert first is not None
    only(study_dir, "baseline", first.finished[0].run_id.removesuffix("-r0"))
    document = {"value": value, "low": low, "high": high, "n": 150, "flags": []}
    change(first.finished[0].folder, **{f"metrics__{metric}": document})
    study = read_study(study_dir)
    decided = verdict(study, list(study.combinations))
    assert decided.choice is study.baseline
    assert any("loses quality" in reason for reason in decided.reasons)
    change(study_dir / "baseline-r0", metrics__success_rate__value=0.5)
    study = read_study(study_dir)
    decided = verdict(study, list(study.combinations))
    assert decided.choice is not None
    assert decided.choice.label == first.label
    assert any("for want of a better" in reason for reason in decided.reasons)


def test_conditions_tell_the_requests_that_were_measured(study_dir: Path) -> None:
    only(study_dir, "baseline")
    change(study_dir / "baseline-r0", config__load__num_requests=5000)
    assert "num requests 150" in dict(conditions(read_study(study_dir)))["Load"]


def test_too_few_requests_are_no_claim(study_dir: Path) -> None:
    only(study_dir, "baseline")
    change(study_dir / "baseline-r0", validity__saturated=None)
    jsonschema.validate(
        json.loads((study_dir / "baseline-r0" / "run.json").read_text()),
        json.loads(SCHEMA.read_text()),
    )
    study = read_study(study_dir)
    assert "1 with too few requests to tell" in dict(conditions(study))["Validity"]


def test_an_earlier_attempt_inside_a_run_is_not_a_run(study_dir: Path) -> None:
    shutil.copytree(study_dir / "broken-r0", study_dir / "cache-r0" / "attempt-1")
    assert len(read_study(study_dir).runs) == len(read_study(STUDY).runs)
