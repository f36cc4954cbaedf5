"""The most goodput that anybody could have: the oracle knows every arrival before it happens.

A strategy's goodput says little by itself, since at load 1.2 nobody can serve everyone. It is
judged by its share of what this module finds: `exact` where the optimum is known, otherwise an
`upper_bound` that nobody can pass together with the `best_found` schedule, a bound from below.

The problem is 1 | p-batch, b < n, r_j, d_j | sum of U_j of offline batch scheduling (Brucker et
al., "Scheduling a batching machine", J. Scheduling 1, 1998), except that here a batch takes
`service_s` by its size: choose batches, and whom to give up, so that as many as possible end in
time. For equal processing times it is polynomial (Baptiste, "Batching identical jobs", Math.
Methods of OR 52, 2000); finding a schedule for all, also on several machines, is due to Koehler
and Khuller ("Optimal batch schedules for parallel machines", WADS 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from capibench.batching.lookahead import lookahead_schedule
from capibench.batching.offline import (
    GRACE_S,
    Array,
    Indices,
    PlannedBatch,
    agreeable,
    check_schedule,
)
from capibench.batching.service_table import ServiceTable
from capibench.batching.several_workers import several_workers_schedule

LOOKAHEAD_WIDTH = 4  # unfinished schedules kept per number of served requests
SEVERAL_WIDTHS = (4, 64)  # the same per request, on several workers; more if not all are served
NUM_LIMITS = 8  # objectives at which bounds divide the requests


@dataclass(frozen=True, slots=True)
class Oracle:
    """Of the offered requests, how many can end in time at most."""

    num_offered: int
    upper_bound: int  # proven: nobody serves more in time
    best_found: int  # a schedule is known that serves these; it is in `batches`
    batches: tuple[PlannedBatch, ...]

    @property
    def exact(self) -> int | None:
        """The optimum, where both bounds meet."""
        return self.best_found if self.best_found == self.upper_bound else None


def oracle(
    release_s: Array,
    due_s: Array,
    service: ServiceTable,
    worker_speeds: Sequence[float] = (1.0,),
    joins_running: bool = False,
    known: Oracle | None = None,
) -> Oracle:
    """Bounds on how many requests can end by `due_s`.

    Args:
        release_s: arrivals [n], any order.
        due_s: absolute deadlines [n].
        service: of a worker with speed 1.
        worker_speeds: one per worker; a worker of speed 2 takes half the time.
        joins_running: also bound schedules in which requests join a running batch between
            iterations, which can do more than whole batches.
        known: what was found for the same requests and workers with the other value of
            `joins_running`, so that no schedule has to be looked for again.

    On one worker whose batches start and end together the bounds meet whenever deadlines are
    agreeable (all requests have the same objective, say) and larger batches take no less time.
    Otherwise the upper bound is a relaxation. `best_found` is then a schedule of whole batches: on
    all workers where deadlines are agreeable, else on the fastest one.
    """
    if len(release_s) != len(due_s):
        raise ValueError(f"due_s: got {len(due_s)}; expected {len(release_s)}, one per arrival")
    if not worker_speeds or not all(0 < speed < float("inf") for speed in worker_speeds):
        raise ValueError(f"worker_speeds: got {list(worker_speeds)}; expected some, above 0")
    n, several = len(release_s), len(worker_speeds) > 1
    fastest = max(worker_speeds)
    service_s = tuple(second / fastest for second in service.batch_s)
    batches: Sequence[PlannedBatch]
    if known is not None:
        batches = known.batches
    elif several and agreeable(release_s, due_s):
        batches = []
        for width in SEVERAL_WIDTHS:
            batches = several_workers_schedule(
                release_s, due_s, service.batch_s, worker_speeds, width
            )
            if sum(len(batch.requests) for batch in batches) == n:
                break
    else:
        if agreeable(release_s, due_s):
            of_one = fifo_schedule(release_s, due_s, service_s)
        else:
            of_one = lookahead_schedule(release_s, due_s, service_s, LOOKAHEAD_WIDTH)
        worker = list(worker_speeds).index(fastest)
        batches = [replace(batch, worker=worker) for batch in of_one]
    found = check_schedule(batches, release_s, due_s, service.batch_s, worker_speeds)
    if several or joins_running:
        # A worker too slow for its best batch to be in time for anybody does without that batch.
        longest_s = float((due_s - release_s).max()) + GRACE_S
        rate_per_s = sum(
            speed
            * (
                service.joined_rate_per_s
                if joins_running
                else service.rate_per_s(longest_s * speed)
            )
            for speed in worker_speeds
        )
        bound = share_bound(release_s, due_s, rate_per_s, service.alone_s / fastest)
    elif agreeable(release_s, due_s) and list(service_s) == sorted(service_s):
        bound = found
    else:
        bound = batch_bound(release_s, due_s, service_s)
    assert found <= bound <= n, (found, bound, n)
    return Oracle(n, bound, found, tuple(batches))


def fifo_schedule(release_s: Array, due_s: Array, service_s: Sequence[float]) -> list[PlannedBatch]:
    """The best schedule of one worker for agreeable deadlines, when batches only hold requests that
    end in time.

    Proof that a small search suffices. Number requests by arrival. (1) If j > i leaves in an
    earlier batch than i, they may change places: i came before j and is due no later than j, so i
    is there and in time where j was, and j is in time where i was. So some optimal schedule is in
    order of arrival. (2) Take a batch and a request that it skips, though released and in time if
    it were in it; let it change places with the last member: later batches start later, so who
    came by now can join them, and the later deadline is the better one to keep. So a batch holds
    consecutive requests, and whoever stands before them and is not served is given up for ever.
    (3) It starts at the later one of "worker free" and "last member came"; starting later helps
    nobody. What matters after i requests are served or given up is therefore only how many were
    served and when the worker is free; of two states with the same i, the one that served no more
    and is free no earlier is dropped. Before i came, all free times are the same.

    Costs O(n · max batch size · states), where the states of one i are at most as many as requests
    that can be served within one objective.
    """
    order = np.lexsort((due_s, release_s))
    release, due = release_s[order], due_s[order] + GRACE_S
    service = np.asarray(service_s)
    n, most = len(release), len(service)
    # inbox[i]: (batch size that led here or 0 for giving up, first parent state, free at, served)
    inbox: list[list[tuple[int, int, Array, Indices]]] = [[] for _ in range(n + 1)]
    inbox[0].append((0, 0, np.array([-np.inf]), np.array([0])))
    history: list[tuple[Indices, Indices]] = []  # [i]: batch size and parent state of each state
    served = np.array([0])
    for i in range(n + 1):
        free, served, sizes, parents = _front(inbox[i], release[i] if i < n else -np.inf)
        inbox[i] = []
        history.append((sizes, parents))
        if i == n:
            break
        inbox[i + 1].append((0, 0, free, served))
        last_came = release[i : i + most]
        latest_start = due[i] - service[: len(last_came)]
        high = np.searchsorted(free, latest_start, side="right")
        low = np.maximum(np.searchsorted(free, last_came, side="right") - 1, 0)
        for at in np.flatnonzero((last_came <= latest_start) & (low < high)).tolist():
            first, behind, size = int(low[at]), int(high[at]), at + 1
            start = np.maximum(free[first:behind], last_came[at])
            inbox[i + size].append((size, first, start + service[at], served[first:behind] + size))
    return _trace(history, int(np.argmax(served)), order, release, service)


def _front(
    entries: list[tuple[int, int, Array, Indices]], now: float
) -> tuple[Array, Indices, Indices, Indices]:
    """States that no other beats, free times and served both ascending, and their origin."""
    free = np.maximum(np.concatenate([entry[2] for entry in entries]), now)
    served = np.concatenate([entry[3] for entry in entries])
    counts = [len(entry[2]) for entry in entries]
    sizes = np.repeat([entry[0] for entry in entries], counts)
    parents = np.concatenate([np.arange(entry[1], entry[1] + len(entry[2])) for entry in entries])
    order = np.lexsort((-served, free))
    ahead = np.maximum.accumulate(served[order])
    kept = order[np.concatenate(([True], ahead[1:] > ahead[:-1]))]
    return free[kept], served[kept], sizes[kept], parents[kept]


def _trace(
    history: list[tuple[Indices, Indices]],
    state: int,
    order: Indices,
    release: Array,
    service: Array,
) -> list[PlannedBatch]:
    """The batches that led to `state` after the last request."""
    runs: list[tuple[int, int]] = []  # first request and size, last batch first
    i = len(history) - 1
    while i > 0:
        size = int(history[i][0][state])
        state = int(history[i][1][state])
        i -= size or 1
        if size:
            runs.append((i, size))
    batches, free_s = [], float("-inf")
    for first, size in reversed(runs):
        start_s = max(free_s, float(release[first + size - 1]))
        free_s = start_s + float(service[size - 1])
        members = tuple(int(index) for index in order[first : first + size])
        batches.append(PlannedBatch(start_s, free_s, members))
    return batches


def batch_bound(release_s: Array, due_s: Array, service_s: Sequence[float]) -> int:
    """No schedule of whole batches on one worker serves more in time, whatever the deadlines.

    Three relaxations, each of which only allows more: (1) A batch of n takes the least of what n
    or more take, as if it could be filled up with requests that nobody needs. (2) Deadlines are
    put off until they are agreeable: each becomes the latest one of those who came no later.
    `fifo_schedule` is then the optimum. (3) For any limit, requests with a longer objective than it
    are taken as served without work; the others are bounded by (1) and (2), which puts off their
    deadlines less. The smallest of these bounds holds.
    """
    table = np.minimum.accumulate(np.asarray(service_s)[::-1])[::-1]
    best = len(release_s)
    for inside in _by_objective(release_s, due_s):
        release, due = _put_off(release_s[inside], due_s[inside])
        batches = fifo_schedule(release, due, table.tolist())
        done = sum(len(batch.requests) for batch in batches)
        best = min(best, done + int((~inside).sum()))
    return best


def share_bound(release_s: Array, due_s: Array, rate_per_s: float, alone_s: float) -> int:
    """Nobody serves more in time, however requests are batched, joined and spread over workers.

    Split the time of every batch, or of every prefill and iteration, equally among the requests in
    it, and count what a worker does as the share of a request that it completes: all workers
    together complete at most `rate_per_s`, and each request that is served is completed between
    its arrival and its deadline, and these shares do not overlap. So they are a preemptive schedule
    of equal jobs on one machine. With agreeable deadlines (put off as in `batch_bound`) earliest
    deadline first is in order of arrival and never preempts, and as many jobs as possible end in
    time if each is taken that can still end in time: to give up an earlier one instead leaves the
    machine free no sooner, since all jobs are equal (Kise, Ibaraki and Mine, "A solvable case of
    the one-machine scheduling problem with ready and due times", Operations Research 26, 1978). Who
    has no time for `alone_s` cannot be served at all.
    """
    share_s = 1.0 / rate_per_s if rate_per_s > 0 else float("inf")
    best = len(release_s)
    for inside in _by_objective(release_s, due_s):
        release, due = _put_off(release_s[inside], due_s[inside])
        free_s, done = float("-inf"), 0
        for came_s, end_s in zip(release.tolist(), (due + GRACE_S).tolist(), strict=True):
            done_s = max(free_s, came_s) + share_s
            if max(done_s, came_s + alone_s) <= end_s:
                free_s, done = done_s, done + 1
        best = min(best, done + int((~inside).sum()))
    return best


def _by_objective(release_s: Array, due_s: Array) -> list[npt.NDArray[np.bool_]]:
    """Masks of the requests whose objective is no longer than a limit; the last one takes all."""
    objective_s = np.round(due_s - release_s, 6)
    limits_s = np.unique(objective_s)
    if len(limits_s) > NUM_LIMITS:
        limits_s = np.unique(np.quantile(limits_s, np.linspace(0, 1, NUM_LIMITS), method="higher"))
    return [objective_s <= limit_s for limit_s in limits_s.tolist()]


def _put_off(release_s: Array, due_s: Array) -> tuple[Array, Array]:
    """In order of arrival, with deadlines put off until nobody is due before an earlier one."""
    order = np.lexsort((due_s, release_s))
    return release_s[order], np.maximum.accumulate(due_s[order])
