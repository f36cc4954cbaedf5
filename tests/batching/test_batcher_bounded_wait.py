"""The bound of waits, by the very script that shows it for a million requests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from choice_files import choices

SCRIPT = Path(__file__).parents[2] / "experiments" / "004-batching" / "bounded_wait.py"
NUM_REQUESTS = 48_000  # in all; the script itself serves a million


@pytest.fixture(scope="module")
def bounded_wait() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bounded_wait", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bounded_wait"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sheds", [False, True])
@pytest.mark.parametrize("load", [0.3, 0.9, 1.2])
@pytest.mark.parametrize("name", choices("batching"))
def test_nobody_who_is_served_waited_longer_than_promised(
    bounded_wait: ModuleType, name: str, load: float, sheds: bool
) -> None:
    share = NUM_REQUESTS // (6 * len(choices("batching"))) + 1
    waits = bounded_wait.measure(name, load, sheds, share, seed=7)
    assert waits.worst_held_back_ms <= 1.0
    assert waits.num_out_of_order == 0
    if sheds:
        assert waits.worst_overrun_ms <= waits.service_ms + 1.0
        assert waits.num_shed < share * 0.5 or load > 0.9 or name == "none"
    else:
        assert waits.num_shed == 0
