"""Filters by fields, and what is wrong with a wrong one."""

from __future__ import annotations

from pathlib import Path

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
        ({"year": {"at_least": "x"}}, "filter.year: got .*not supported between"),
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
    with pytest.raises(ValueError, match="fields: got module; expected module, public, year"):
        metadata.add(np.array([11]), {"module": ["os"]})
    with pytest.raises(ValueError, match="module: got 2 values; expected one for each of 1 ids"):
        metadata.add(np.array([11]), {"module": ["os", "x"]})
    with pytest.raises(ValueError, match="ids: got 11, which has no metadata"):
        metadata.remove(np.array([10, 11]))
    assert metadata.select({}).ids.tolist() == [1, 5, 7, 10]
    (tmp_path / "bad.json").write_text('{"ids": [1]}')
    with pytest.raises(DataError, match="no metadata"):
        Metadata.read(tmp_path / "bad.json")
