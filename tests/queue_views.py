"""Queues as strategies see them, made by hand, and what a strategy answers: for tests of exact
decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choice_files import load_choice

from capibench.batching.strategy import (
    LearnsService,
    QueueView,
    Served,
    Strategy,
    WaitingItem,
    WaitUntil,
    WorkerView,
)
from capibench.batching.waiting import WaitingQueue
from capibench.config import build

INFINITY = float("inf")
IDLE = WorkerView(0, None)
AFFINE = {size: 0.010 + 0.002 * size for size in range(1, 33)}


def shipped(name: str, **changes: object) -> Any:
    return build({**load_choice("batching", name)["strategy"], **changes}, "batching.strategy")


def teach(strategy: LearnsService, seconds: Mapping[int, float], worker: int = 0) -> None:
    for size, value in seconds.items():
        for _ in range(3):
            strategy.observe(Served(worker, [0] * size, value))


def item(enqueued_s: float, priority: int = 3, deadline_s: float = INFINITY) -> WaitingItem:
    return WaitingItem(priority, 0, enqueued_s, INFINITY, deadline_s)


def view(
    items: Sequence[WaitingItem], now_s: float, workers: Sequence[WorkerView] = (IDLE,)
) -> QueueView:
    return QueueView(WaitingQueue(items), now_s, workers, False)


def decided(strategy: Strategy, seen: QueueView) -> tuple[int, str] | float:
    """Size and reason, or until when it waits."""
    decision = strategy.decide(seen)
    if isinstance(decision, WaitUntil):
        return decision.time_s
    return len(decision.indices), decision.reason
