"""Schedules made with all arrivals known, and the check that one is what it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Sums of the same seconds in another order differ in the last digits. An end this much after its
# deadline still counts, in the oracle and in the simulation alike.
GRACE_S = 1e-6


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch of an offline schedule. Times count from the same zero as the arrivals."""

    start_s: float
    end_s: float
    requests: tuple[int, ...]  # indices into the arrivals
    worker: int = 0


def agreeable(release_s: Array, due_s: Array) -> bool:
    """Whether who comes later is never due earlier; equal times in any order."""
    order = np.lexsort((due_s, release_s))
    return bool((np.diff(due_s[order]) >= -GRACE_S).all())


def check_schedule(
    batches: Sequence[PlannedBatch],
    release_s: Array,
    due_s: Array,
    service_s: Sequence[float],
    worker_speeds: Sequence[float] = (1.0,),
) -> int:
    """Number of requests that `batches`, in order of start, serve in time.

    The proof of a lower bound: it shares no code with what makes schedules.

    Raises:
        ValueError: naming the batch that no worker could run.
    """
    free_s, seen = [float("-inf")] * len(worker_speeds), set[int]()
    for number, batch in enumerate(batches):
        size = len(batch.requests)
        if not 1 <= size <= len(service_s):
            raise ValueError(f"batch {number}: got {size} requests; expected 1-{len(service_s)}")
        if seen.intersection(batch.requests) or len(set(batch.requests)) < size:
            raise ValueError(f"batch {number}: got a request for the second time")
        seen.update(batch.requests)
        busy_s = free_s[batch.worker]
        if batch.start_s < busy_s - GRACE_S:
            raise ValueError(f"batch {number}: starts at {batch.start_s}; busy until {busy_s}")
        latest_s = max(release_s[i] for i in batch.requests)
        if batch.start_s < latest_s - GRACE_S:
            raise ValueError(f"batch {number}: starts at {batch.start_s}; last came at {latest_s}")
        takes_s = service_s[size - 1] / worker_speeds[batch.worker]
        if abs(batch.end_s - batch.start_s - takes_s) > GRACE_S:
            raise ValueError(
                f"batch {number}: takes {batch.end_s - batch.start_s} s; expected {takes_s}"
            )
        if batch.end_s > min(due_s[i] for i in batch.requests) + GRACE_S:
            raise ValueError(f"batch {number}: ends at {batch.end_s}, after a deadline in it")
        free_s[batch.worker] = batch.end_s
    return len(seen)
