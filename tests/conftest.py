"""What every test may use: a choice of the configuration tree, built as a run builds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from choice_files import load_choice
from hypothesis import HealthCheck, settings

from capibench.config import build

# Several tests run side by side: libraries that each take all cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that who changed something is told of that and of nothing else;
# how long an example takes says what else the machine does. `--hypothesis-profile=searching` draws
# others.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "searching", settings.get_profile("repeatable"), derandomize=False, print_blob=True
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: they take longest, and short tests fill the end of several workers."""
    items.sort(key=lambda item: item.path.parent.name != "e2e")


@pytest.fixture
def choice() -> Callable[..., Any]:
    """`choice("batching", "greedy", max_queue_size=4)` builds that choice."""

    def make(group: str, name: str, **changes: object) -> Any:
        return build(load_choice(group, name, **changes), group)

    return make
