"""Holds a model before some of its forward passes, so that what a test does meanwhile certainly
comes first, however busy the machine is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

MOST_S = 100.0  # after which a pass fails, since nobody lets it go


@contextmanager
def held(module: nn.Module, *numbers: int) -> Iterator[Callable[[int], None]]:
    """Hold the passes of these numbers, counted from 1 from now on. Yields what lets one go."""
    let_go = {number: threading.Event() for number in numbers}
    num_passes = 0

    def hold(module: nn.Module, args: object) -> None:
        nonlocal num_passes
        num_passes += 1
        if num_passes in let_go:
            assert let_go[num_passes].wait(MOST_S), f"nobody let pass {num_passes} go"

    handle = module.register_forward_pre_hook(hold)
    try:
        yield lambda number: let_go[number].set()
    finally:
        handle.remove()
        for event in let_go.values():
            event.set()
