"""A good offline schedule for several workers of different speeds, where the best is out of reach.

A beam search (Lowerre 1976), as in `lookahead`, over what is left after each request in order of
arrival: when each worker is free, and how many were served. It knows all arrivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capibench.batching.offline import GRACE_S, Array, Indices, PlannedBatch

_GIVEN_UP = -1  # as a worker: the request is served by none
# A free worker is worth this share of what it could serve at best: it will not always find as many
# requests. From 0.5 to 0.8 the schedules found are the best ones, at 1 slow workers stand idle.
_TIME_USED = 0.7
_ALIKE = 4  # so many times the width are looked at for states that are the same


@dataclass(frozen=True, slots=True)
class _Offers:
    """Unfinished schedules that have decided about the same requests, and how each came to be."""

    free_s: Array  # [states, workers]
    served: Indices  # [states]
    parents: Indices  # [states]: the state that it grew from
    worker: int  # that took the batch, or _GIVEN_UP
    size: int  # of the batch; 1 if given up


def several_workers_schedule(
    release_s: Array,
    due_s: Array,
    service_s: Sequence[float],
    worker_speeds: Sequence[float],
    width: int,
) -> list[PlannedBatch]:
    """Batches that all end in time, in order of start; nothing says that there are no better ones.

    Args:
        release_s: arrivals [n], any order.
        due_s: deadlines [n], agreeable: who comes later is never due earlier.
        service_s: of a worker with speed 1, by size of batch.
        worker_speeds: one per worker.
        width: unfinished schedules that go on from each request.

    What is heuristic: a batch holds requests that came one after the other (on one worker that
    costs nothing, see `oracle.fifo_schedule`), and of all schedules only those go on that served
    most, less what the workers would serve in the time for which they are taken already.
    """
    order = np.lexsort((due_s, release_s))
    release, due = release_s[order], due_s[order] + GRACE_S
    n, num_workers = len(release), len(worker_speeds)
    if not n:
        return []
    seconds = np.asarray(service_s)[None, :] / np.asarray(worker_speeds)[:, None]
    within = seconds <= float((due_s - release_s).max()) + GRACE_S  # larger batches help nobody
    rates = np.where(within, np.arange(1, len(service_s) + 1) / seconds, 0.0).max(axis=1)
    worth_per_s = _TIME_USED * rates
    inbox: list[list[_Offers]] = [[] for _ in range(n + 1)]
    inbox[0].append(
        _Offers(np.full((1, num_workers), -np.inf), np.array([0]), np.array([0]), _GIVEN_UP, 1)
    )
    history: list[tuple[Indices, Indices, Indices]] = []  # parents, workers and sizes of states
    served = np.array([0])
    for i in range(n + 1):
        now = float(release[i]) if i < n else float(due[-1])
        free, served, came_from = _best(inbox[i], now, worth_per_s, width)
        inbox[i] = []
        history.append(came_from)
        if i == n:
            break
        inbox[i + 1].append(_Offers(free, served, np.arange(len(served)), _GIVEN_UP, 1))
        for worker in range(num_workers):
            for size in range(1, min(len(service_s), n - i) + 1):
                if release[i + size - 1] > due[i]:
                    break
                end = np.maximum(free[:, worker], release[i + size - 1])
                end += seconds[worker, size - 1]
                states = np.flatnonzero(end <= due[i])
                if not len(states):
                    continue
                then = free[states]
                then[:, worker] = end[states]
                inbox[i + size].append(_Offers(then, served[states] + size, states, worker, size))
    return _traced(history, int(np.argmax(served)), order, release, seconds)


def _best(
    offers: list[_Offers], now: float, worth_per_s: Array, width: int
) -> tuple[Array, Indices, tuple[Indices, Indices, Indices]]:
    """At most `width` states: free times, served, and how they came to be."""
    free = np.maximum(np.concatenate([offer.free_s for offer in offers]), now)
    served = np.concatenate([offer.served for offer in offers])
    parents = np.concatenate([offer.parents for offer in offers])
    counts = [len(offer.served) for offer in offers]
    workers = np.repeat([offer.worker for offer in offers], counts)
    sizes = np.repeat([offer.size for offer in offers], counts)
    worth = served - (free - now) @ worth_per_s
    ranked = np.argsort(-worth, kind="stable")[: _ALIKE * width]
    # The same state twice is one: it would only take the place of another.
    _, first = np.unique(
        np.column_stack([served, np.round(free / GRACE_S)])[ranked], axis=0, return_index=True
    )
    kept = ranked[np.sort(first)[:width]]
    return free[kept], served[kept], (parents[kept], workers[kept], sizes[kept])


def _traced(
    history: list[tuple[Indices, Indices, Indices]],
    state: int,
    order: Indices,
    release: Array,
    seconds: Array,
) -> list[PlannedBatch]:
    """The batches that led to `state` after the last request."""
    runs: list[tuple[int, int, int]] = []  # first request, size and worker, last batch first
    i = len(history) - 1
    while i > 0:
        parents, workers, sizes = history[i]
        worker, size = int(workers[state]), int(sizes[state])
        state = int(parents[state])
        i -= size
        if worker != _GIVEN_UP:
            runs.append((i, size, worker))
    free_s = [float("-inf")] * len(seconds)
    batches = []
    for first, size, worker in reversed(runs):
        start_s = max(free_s[worker], float(release[first + size - 1]))
        free_s[worker] = start_s + float(seconds[worker, size - 1])
        members = tuple(int(index) for index in order[first : first + size])
        batches.append(PlannedBatch(start_s, free_s[worker], members, worker))
    return sorted(batches, key=lambda batch: batch.start_s)
