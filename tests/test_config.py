"""`build` accepts exactly what a dataclass declares, and says what would be right otherwise."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from choice_files import choices, load_choice

from capibench.config import build, conf_dir, node_of
from capibench.errors import ConfigError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Part:
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size: got {self.size}; expected at least 1")


@dataclass
class Whole:
    name: str
    rate: float
    limit: int | None
    mode: Literal["a", "b"]
    colour: Colour
    sizes: Sequence[int]
    table: Mapping[int, float]
    part: Part
    flag: bool


ME = "test_config"
GOOD: dict[str, Any] = {
    "_target_": f"{ME}.Whole",
    "name": "x",
    "rate": 2,
    "limit": None,
    "mode": "a",
    "colour": "red",
    "sizes": [1, 2],
    "table": {"1": 0.5, 2: 1},
    "part": {"_target_": f"{ME}.Part", "size": 3},
    "flag": True,
}


def test_builds_nested_and_typed() -> None:
    whole = build(GOOD, "group", [ME])
    assert whole == Whole("x", 2.0, None, "a", Colour.RED, [1, 2], {1: 0.5, 2: 1.0}, Part(3), True)
    assert isinstance(whole.rate, float)


def test_another_process_builds_an_equal_component() -> None:
    whole = build(GOOD, "group", [ME])
    sent = json.loads(json.dumps(node_of(whole)))
    assert build(sent, "group", [ME]) == whole


@pytest.mark.parametrize("group", ["engine", "model", "quantization"])
def test_every_choice_a_replica_is_told_of_survives_the_way(group: str) -> None:
    for name in choices(group):
        node = {key: "given" if v == "???" else v for key, v in load_choice(group, name).items()}
        sent = json.loads(json.dumps(node_of(build(node, group))))
        assert node_of(build(sent, group)) == node_of(build(node, group))
        assert sent.keys() == node.keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": 3}, "group.name: got 3 (int); expected str"),
        ({"rate": "fast"}, "group.rate: got 'fast' (str); expected float"),
        ({"rate": True}, "group.rate: got True (bool); expected float"),
        ({"rate": math.nan}, "group.rate: got nan; expected a finite number"),
        ({"table": {1: 0.5, 2: -math.inf}}, "group.table.2: got -inf; expected a finite number"),
        ({"sizes": [1, math.inf]}, "group.sizes[1]: got inf; expected a finite number"),
        ({"limit": 1.5}, "group.limit: got 1.5 (float); expected int"),
        ({"mode": "c"}, "group.mode: got 'c'; expected one of a, b"),
        ({"colour": "green"}, "group.colour: got 'green'; expected one of red, blue"),
        ({"sizes": [1, "2"]}, "group.sizes[1]: got '2' (str); expected int"),
        ({"sizes": "12"}, "group.sizes: got '12' (str)"),
        ({"table": {1: "x"}}, "group.table.1: got 'x' (str); expected float"),
        ({"part": {"_target_": f"{ME}.Part", "size": 0}}, "group.part.size: got 0; expected at"),
        ({"part": {"_target_": f"{ME}.Part"}}, "group.part.size: missing; expected int"),
        ({"part": {"_target_": "os.system"}}, "group.part._target_: 'os.system' is not allowed"),
        ({"part": {"_target_": f"{ME}.Nobody"}}, "is not a dataclass"),
        ({"part": {"_target_": "capibench.index.tuning.none.NoTuning"}}, "expected a Part"),
        ({"part": {"_target_": "capibench.nowhere.X"}}, "cannot import 'capibench.nowhere'"),
        ({"extra": 1}, "group.extra: unknown key (value 1); known: name, rate"),
    ],
)
def test_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build({**GOOD, **changes}, "group", [ME])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


GROUPS = sorted(
    str(path.relative_to(conf_dir()))
    for path in conf_dir().iterdir()
    if path.is_dir() and path.name not in ("hydra", "study", "experiment")
)


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_a_choice_with_comments(group: str) -> None:
    names = choices(group)
    assert names
    for name in names:
        text = (conf_dir() / group / f"{name}.yaml").read_text()
        assert text.startswith("# "), f"{group}/{name}.yaml does not say what it is for"
        node = load_choice(group, name)
        builds_on = {item for item in node.get("defaults", []) if item in names}
        assert builds_on or node["_target_"].startswith("capibench.")
