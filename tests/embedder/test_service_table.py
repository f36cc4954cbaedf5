"""Modeled service times: the measured points, the lines between, batches beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from choice_files import load_choice

from capibench.clock import Compute, run_virtual
from capibench.config import build
from capibench.embedder.service_table import ServiceTable
from capibench.errors import ConfigError


def test_points_lines_and_beyond() -> None:
    table = ServiceTable({4: 0.4, 1: 0.1, 8: 0.2})  # not monotone, not sorted: as measured
    assert [table.seconds(n) for n in (1, 4, 8)] == [0.1, 0.4, 0.2]
    assert table.seconds(2) == pytest.approx(0.2)
    assert table.seconds(6) == pytest.approx(0.3)
    assert table.seconds(17) == pytest.approx(0.2 + 0.2 + 0.1)
    assert table.seconds(0) == 0


@pytest.mark.parametrize("group", ["embedder", "index"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({2: 0.1}, "expected sizes of at least 1, and 1 among them"),
        ({0: 0.1, 1: 0.1}, "expected sizes of at least 1, and 1 among them"),
        ({1: 0.0}, "expected seconds above 0"),
        ({1: float("inf")}, "expected a finite number"),
    ],
)
def test_bad_tables_are_refused(group: str, table: dict[int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load_choice(group, "modeled", service_table_s=table), group)


@pytest.mark.parametrize("group", ["embedder", "index"])
def test_batches_beyond_the_table_are_refused(choice: Callable[..., Any], group: str) -> None:
    with pytest.raises(ConfigError, match="expected at most the largest measured size 4"):
        choice(group, "modeled", service_table_s={1: 0.1, 4: 0.2}, max_batch_size=5)


def test_takes_its_time_on_the_virtual_clock(choice: Callable[..., Any]) -> None:
    embedder = choice("embedder", "modeled", service_table_s={1: 2.0, 4: 5.0}, max_batch_size=4)

    async def main() -> float:
        import asyncio

        await Compute("embed").call(embedder, embedder.encode, ["a", "b", "c"])
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 4.0
