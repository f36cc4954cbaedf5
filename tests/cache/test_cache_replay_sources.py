"""What the replay tool reads: files of three formats, folders of runs, sizes and names of policies;
and how it refuses what is none of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from capibench.cache.policies.lru import Lru
from capibench.cache.replay.choices import capacities, load_policies
from capibench.cache.replay.command import main
from capibench.cache.replay.replay import Outcome, replay
from capibench.cache.replay.run_log import read_run
from capibench.cache.replay.trace import Columns, KeyTrace, read_key_trace
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import OVERHEAD_BYTES
from capibench.errors import ConfigError, DataError

TRACE = Path(__file__).parents[1] / "fixtures" / "traces" / "cache_keys.csv"
FOUND = Columns(None, None, None, None, None)


def under_lru(trace: KeyTrace) -> Outcome:
    return replay(trace, {"lru": Lru()}, [10**6], 0, lambda _: None).outcomes[0]


ROWS = [("a", 10, 0.5, 0.0), ("b", 20, 1.5, 1.0), ("a", 10, 0.5, 2.5)]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"trace.{kind}"
    frame = pd.DataFrame(ROWS, columns=["key", "size", "cost_s", "time"])
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_three_formats_are_one_trace(tmp_path: Path, kind: str) -> None:
    trace = read_key_trace(write(tmp_path, kind), FOUND)
    assert trace.ids.tolist() == [0, 1, 0]
    assert trace.sizes is not None
    assert trace.sizes.tolist() == [10, 20, 10]
    assert trace.costs_s is not None
    assert trace.costs_s.tolist() == [0.5, 1.5, 0.5]
    assert trace.times_s.tolist() == [0.0, 1.0, 2.5]
    assert trace.working_set_bytes == 30
    assert trace.keys == read_key_trace(write(tmp_path, "csv"), FOUND).keys


def test_lists_and_nested_fields(tmp_path: Path) -> None:
    path = tmp_path / "blocks.jsonl"
    path.write_text(
        '{"timestamp": "3", "ids": {"blocks": [7, 8]}}\n\n'
        '{"timestamp": "4", "ids": {"blocks": []}}\n{"timestamp": "5", "ids": {"blocks": [7]}}\n'
    )
    trace = read_key_trace(path, Columns("ids.blocks", None, None, "timestamp", None))
    assert trace.ids.tolist() == [0, 1, 0]
    assert trace.times_s.tolist() == [3.0, 3.0, 5.0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_timestamps_are_seconds_since_the_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"trace.{kind}"
    times = [
        "2023-11-16 18:15:46.6805900",
        "2023-11-16T18:15:50.9805900",
        "2023-11-17 18:15:46.68059",
    ]
    frame = pd.DataFrame({"key": ["a", "b", "a"], "TIMESTAMP": times})
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame["TIMESTAMP"] = pd.to_datetime(frame["TIMESTAMP"], format="ISO8601")
        frame.to_parquet(path)
    trace = read_key_trace(path, Columns(None, None, None, "TIMESTAMP", None))
    assert trace.times_s.tolist() == pytest.approx([0.0, 4.3, 86400.0])


def test_a_shipped_trace_of_requests_can_be_replayed() -> None:
    trace = read_key_trace(
        TRACE.parent / "azure_made.csv", Columns("ContextTokens", None, None, "TIMESTAMP", None)
    )
    assert trace.times_s[0] == 0.0
    assert 0 < trace.times_s[-1] < 86400


def test_text_and_numbers_name_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": 1}\n{"key": "1"}\n{"key": "01"}\n')
    assert read_key_trace(path, FOUND).ids.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "key\na\n", r"a\.txt: got \.txt; expected \.csv, \.jsonl, \.parquet"),
        ("a.csv", "", r"a\.csv: cannot be read"),
        ("a.csv", "key\n", r"a\.csv: no access in it"),
        ("a.csv", "id\na\n", r"a\.csv: no column 'key' \(for key\); found id"),
        ("a.csv", "key,size\na,1\n,2\n", r"row 2: key: got nothing; expected a key"),
        ("a.csv", "key,size\na,1\nb,0\n", r"row 2: size: got '0'; expected a whole number"),
        ("a.csv", "key,size\na,1.5\n", r"row 1: size: got '1\.5'"),
        ("a.csv", "key,cost_s\na,x\n", r"row 1: cost_s: got 'x'; expected seconds"),
        ("a.csv", "key,cost_s\na,-1\n", r"row 1: cost_s: got '-1'"),
        ("a.csv", "key,cost_s\na,inf\n", r"row 1: cost_s: got 'inf'"),
        ("a.csv", "key,ttl_s\na,0\n", r"row 1: ttl_s: got '0'; expected seconds above 0"),
        ("a.csv", "key,time\na,2\nb,1\n", r"row 2: time: got '1'; expected .* no earlier than"),
        ("a.csv", "key,time\na,2023-11-16 18:15\nb,x\n", r"row 2: time: got 'x'; expected seconds"),
        ("a.csv", "key,time\na,2023-11-16\nb,2023-11-15\n", r"row 2: time: got '2023-11-15'"),
        ("a.csv", "key,time\na,2\nb,2023-11-16\n", r"row 2: time: got '2023-11-16'"),
        ("a.csv", "key,size\na,9e18\na,9e18\n", r"row 1: size: got '9e18'; expected .* 2\*\*62"),
        ("a.csv", "key,size\na,3e18\nb,3e18\n", r"row 2: size: got '3e18'; expected .* 2\*\*62"),
        ("a.csv", "key,size\na,1\nb,1e30\n", r"row 2: size: got '1e30'; expected .* 2\*\*62"),
        ("a.jsonl", '{"key": 1, "cost_s": true}\n', r"row 1: cost_s: got True; expected seconds"),
        ("a.jsonl", '{"key": 1, "size": true}\n', r"row 1: size: got True; expected a whole"),
        (
            "a.jsonl",
            '{"key": "a"}\n{"key": {"passages": [1, 2], "user": [3]}}\n',
            r"row 2: key: got \{'passages'.*; expected .* as --key key\.passages, --key key\.user$",
        ),
        (
            "a.jsonl",
            '{"key": [1, [2, 3]]}\n',
            r"row 1: key: got \[2, 3\]; expected a key or a list",
        ),
        ("a.csv", 'key,size\n"a,1\n', r"a\.csv: "),
        ("a.csv", "key,size\na,10,5\nb,10,5\n", r"rows have more fields than its header"),
        ("a.csv", "key\na,\nb,\n", r"rows have more fields than its header"),
        ("a.jsonl", '{"key": 1}\n{"key"\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: got '\[1\]'; expected an object"),
        ("a.jsonl", '{"k": 1}\n', r"no column 'key' \(for key\); found k"),
        ("a.jsonl", '{"key": 1}\n{"size": 2}\n', r"row 2: key: got nothing"),
        ("a.jsonl", '{"key": []}\n', r"key: got empty lists only"),
        ("a.parquet", "nonsense", r"a\.parquet: cannot be read"),
    ],
)
def test_a_malformed_file_is_one_clear_error(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_key_trace(path, FOUND)
    assert "\n" not in str(caught.value).strip()


def test_a_column_that_is_named_must_be_there() -> None:
    with pytest.raises(DataError, match=r"no column 'bytes' \(for size\)"):
        read_key_trace(TRACE, Columns(None, "bytes", None, None, None))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [("1%,5%", [10, 50]), ("2KiB, 1.5MiB", [2048, 1572864]), ("64", [64]), ("0.01%", [1])],
)
def test_sizes(sizes: str, expected: list[int]) -> None:
    assert capacities(sizes, 1000) == expected


@pytest.mark.parametrize("sizes", ["", "5 %", "five", "-1%", "1TB", "0%", "0"])
def test_wrong_sizes(sizes: str) -> None:
    with pytest.raises(ConfigError, match=r"--sizes: got"):
        capacities(sizes, 1000)


def test_policies_take_changed_values_and_wrong_ones_are_named() -> None:
    found = load_policies(["lru", "w_tinylfu:window_share=0.5:sample_factor=3", "belady"], None, ())
    assert list(found) == ["lru", "w_tinylfu:window_share=0.5:sample_factor=3"]
    changed: Any = found["w_tinylfu:window_share=0.5:sample_factor=3"]
    assert (changed.window_share, changed.sample_factor) == (0.5, 3)
    for spec, message in (
        (
            "nothing",
            r"--policies: got 'nothing'; expected a choice of the cache group: adaptive, arc",
        ),
        ("none", "got 'none', which keeps nothing"),
        ("lru:knob=1", r"cache\.policy\.knob: unknown key \(value 1\)"),
        ("w_tinylfu:knob=1", r"knob: unknown key .*; known: .*window_share"),
        ("lru:knob", r"--policies: lru: .*missing EQUAL"),
        ("w_tinylfu:window_share=2", r"window_share: got 2\.0; expected 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_policies([spec], None, ())


# --- runs


def write_run(folder: Path, cache: dict[str, Any] | None, as_journal: bool = False) -> Path:
    """Six requests: a question twice (the second time from the cache), one that failed, others."""
    rows = []
    for number, (question, result, served_by) in enumerate(
        [
            ("q1", "miss", "engine"),
            ("q2", "miss", "engine"),
            ("q1", "l1", "result_l1"),
            ("q3", "miss", "engine"),
            ("q2", "miss", "output_l1"),
            ("q4", "miss", ""),
        ]
    ):
        computed = result == "miss"
        rows.append(
            {
                "request_id": number,
                "question_id": question,
                "status": "ok" if served_by else "failed",
                "phase": "warmup" if number == 0 else "measure",
                "sent_s": float(number),
                "embed_s": 0.01 * computed,
                "search_s": 0.02 * computed,
                "prompt_s": 0.0,
                "generate_s": 0.5 * (served_by == "engine"),
                "result_cache": result,
                "embedding_cache": "miss" if computed else "off",
                "served_by": served_by,
                "max_new_tokens": 8,
                "retrieved_ids": ["p1", "p2"],
                "answer": "yes" if served_by else None,
                "prompt_tokens": 40.0,
                "output_tokens": 5.0,
            }
        )
    folder.mkdir()
    if as_journal:
        lines = [json.dumps(row) for row in rows]
        (folder / "journal.jsonl").write_text("\n".join(lines) + '\n{"half')
    else:
        pd.DataFrame(rows).to_parquet(folder / "records.parquet")
    document: dict[str, Any] = {
        "config": {"cache": {"ttl_s": {"query_result": 2.5, "embedding": 9, "model_output": 9}}},
        "components": {"embedder": {"dimension": 4}, "cache": cache or {}},
    }
    (folder / "run.json").write_text(json.dumps(document))
    return folder


STORED = {"tiers": {"l1": {"by_type": {"model_output": {"stored": 4, "stored_bytes": 400}}}}}


@pytest.mark.parametrize("as_journal", [False, True])
def test_the_answers_of_a_run_are_a_trace(tmp_path: Path, as_journal: bool) -> None:
    trace = read_run(write_run(tmp_path / "run", None, as_journal), "query_result")
    assert trace.ids.tolist() == [0, 1, 0, 2, 1]
    assert trace.costs_s is not None
    # What a cache served costs what it cost when it was computed.
    assert trace.costs_s.tolist() == pytest.approx([0.53] * 5)
    record = {
        "answer": "yes", "retrieved_ids": ["p1", "p2"], "prompt_tokens": 40, "output_tokens": 5,
    }  # fmt: skip
    assert trace.sizes is not None
    assert set(trace.sizes.tolist()) == {16 + len(encode(record)) + OVERHEAD_BYTES}
    assert trace.left_out == "1 of 6 requests: not answered, or never computed here"
    assert trace.num_warmup == 1
    outcome = under_lru(trace)
    assert outcome.hits == 1  # q1 after 2 s; q2 after 3 s is stale


@pytest.mark.parametrize("result", ["joined", "semantic"])
def test_who_computed_nothing_costs_what_another_computed(tmp_path: Path, result: str) -> None:
    run = write_run(tmp_path / "run", None)
    rows = pd.read_parquet(run / "records.parquet")
    rows.loc[2, ["result_cache", "served_by"]] = [result, f"result_{result}"]
    rows.to_parquet(run / "records.parquet")
    trace = read_run(run, "query_result")
    assert trace.costs_s is not None
    assert trace.costs_s.tolist() == pytest.approx([0.53] * 5)


def test_the_mix_of_a_run(tmp_path: Path) -> None:
    trace = read_run(write_run(tmp_path / "run", STORED), "mix")
    assert (len(trace), trace.num_warmup) == (15, 3)
    outcome = under_lru(trace)
    # q1's answer, and of q2 the vector and the output.
    assert (outcome.lookups, outcome.hits) == (13, 3)
    assert outcome.seconds_saved == pytest.approx(0.53 + 0.01 + 0.5)
    assert outcome.saved_share == pytest.approx(1.04 / (5 * 0.53))
    with pytest.raises(DataError, match="how large a model_output is was not measured"):
        read_run(write_run(tmp_path / "other", None), "mix")


@pytest.mark.parametrize(("options", "counted"), [([], 4), (["--warmup", "0"], 5)])
def test_a_runs_warm_up_is_not_counted_unless_told(
    options: list[str], counted: int, tmp_path: Path, capsys: Any
) -> None:
    run = write_run(tmp_path / "run", None)
    main([str(run), "--policies", "lru", "--json", *options])
    assert json.loads(capsys.readouterr().out)["infinite"]["lookups"] == counted


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows in it; expected the folder of a run"):
        read_run(tmp_path, "query_result")
    run = write_run(tmp_path / "run", None)
    (run / "run.json").write_text("{}")
    with pytest.raises(DataError, match="got no config"):
        read_run(run, "query_result")
    (run / "run.json").unlink()
    with pytest.raises(DataError, match=r"no run\.json"):
        read_run(run, "query_result")
    pd.read_parquet(run / "records.parquet").drop(columns=["answer", "phase"]).to_parquet(
        run / "records.parquet"
    )
    with pytest.raises(DataError, match="no columns phase, answer in its rows; expected those of"):
        read_run(run, "query_result")
    (run / "records.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="its rows cannot be read"):
        read_run(run, "query_result")
