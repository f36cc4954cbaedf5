"""Filters by fields, and what is wrong with a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capibench.errors import DataError
from capibench.index.metadata import Condition, Metadata


def table() -> Metadata:
    fields = {
        "module": ["asyncio", "os", "os", "json"],
        "year": [1999, 2001, 2010, 2020],
        "public": [True, True, False, True],
    }
    return Metadata(np.array([10, 5, 7, 1]), fields)


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ({}, [1, 5, 7, 10]),
        ({"module": "os"}, [5, 7]),
        ({"module": ["os", "json"]}, [1, 5, 7]),
        ({"module": []}, []),
        ({"year": {"at_least": 2001}}, [1, 5, 7]),
        ({"year": {"at_least": 2000, "at_most": 2010}}, [5, 7]),
        ({"module": "os", "public": True}, [5]),
        ({"module": "nobody"}, []),
        ({"module": {"os", "json"}}, [1, 5, 7]),
        ({"module": {"at_least": "json"}}, [1, 5, 7]),
        ({"year": np.int64(2010)}, [7]),
        ({"year": np.array([1999, 2020])}, [1, 10]),
        ({"year": {"at_least": np.float32(2000.5), "at_most": np.int32(2010)}}, [5, 7]),
    ],
)
def test_selects(conditions: dict[str, Condition], ids: list[int]) -> None:
    assert table().select(conditions).ids.tolist() == ids


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"modul": "os"}, "filter: got field 'modul'; expected one of module, public, year"),
        ({"year": {"above": 3}}, "filter.year: got .*; expected at_least, at_most or both"),
        ({"year": {}}, "filter.year: got .*; expected at_least, at_most or both"),
        ({"year": {"at_least": "x"}}, "filter.year.at_least: got 'x'; expected a finite number"),
        ({"year": {"at_most": float("nan")}}, "filter.year.at_most: got nan; expected a finite"),
        ({"public": {"at_least": True}}, "filter.public.at_least: got True; expected no range"),
        ({"year": "2001"}, "filter.year: got '2001'; expected a finite number"),
        ({"year": None}, "filter.year: got None; expected a finite number"),
        ({"public": 1}, "filter.public: got 1; expected true or false"),
        ({"module": [["os"]]}, r"filter.module: got \['os'\]; expected text"),
        ({"module": b"os"}, "filter.module: got b'os'; expected text"),
    ],
)
def test_wrong_filters_are_refused(conditions: dict[str, Condition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table().select(conditions)


def test_changes_and_comes_back(tmp_path: Path) -> None:
    metadata = table()
    metadata.add(np.array([3]), {"module": ["os"], "year": [2024], "public": [True]})
    metadata.remove(np.array([5]))
    metadata.write(tmp_path / "fields.json")
    loaded = Metadata.read(tmp_path / "fields.json")
    for kept in (metadata, loaded):
        assert kept.select({"module": "os"}).ids.tolist() == [3, 7]
    assert loaded.fields == metadata.fields
    assert loaded.ids.tolist() == [10, 7, 1, 3]


def test_wrong_changes_change_nothing(tmp_path: Path) -> None:
    metadata = table()
    with pytest.raises(ValueError, match="ids: got 10, which has metadata already"):
        metadata.add(np.array([10]), {"module": ["os"], "year": [1], "public": [True]})
    with pytest.raises(
        ValueError, match="metadata: got fields module; expected module, public, year"
    ):
        metadata.add(np.array([11]), {"module": ["os"]})
    with pytest.raises(ValueError, match="module: got 2 values; expected one for each of 1 ids"):
        metadata.add(np.array([11]), {"module": ["os", "x"]})
    with pytest.raises(ValueError, match="ids: got 11, which has no metadata"):
        metadata.remove(np.array([10, 11]))
    assert metadata.select({}).ids.tolist() == [1, 5, 7, 10]
    (tmp_path / "bad.json").write_text('{"ids": [1]}')
    with pytest.raises(DataError, match="no metadata"):
        Metadata.read(tmp_path / "bad.json")


def test_numpys_values_are_kept_as_pythons(tmp_path: Path) -> None:
    fields = {
        "count": np.arange(2),
        "share": [np.float32(0.5), np.float64(1.5)],
        "good": [np.bool_(True), False],
        "name": [np.str_("a"), "b"],
    }
    metadata = Metadata(np.arange(2), fields)  # type: ignore[arg-type]
    metadata.write(tmp_path / "fields.json")
    for kept in (metadata, Metadata.read(tmp_path / "fields.json")):
        assert kept.fields == {
            "count": [0, 1], "share": [0.5, 1.5], "good": [True, False], "name": ["a", "b"],
        }  # fmt: skip
        assert {type(v) for values in kept.fields.values() for v in values} == {
            int, float, bool, str,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": [1, None]}, r"metadata.a\[1\]: got None; expected text, a finite number, true"),
        ({"a": [1.0, float("inf")]}, r"metadata.a\[1\]: got inf"),
        ({"a": [b"x", b"y"]}, r"metadata.a\[0\]: got b'x'"),
        ({"a": "xy"}, "metadata.a: got str; expected a list of values"),
        ({"a": {1, 2}}, "metadata.a: got set; expected a list of values"),
        ({1: ["x", "y"]}, "metadata: got field 1; expected text"),
        (["x", "y"], "metadata: got list; expected a mapping"),
    ],
)
def test_values_that_cannot_be_kept(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metadata(np.arange(2), fields)
