"""How long does a request wait, if it is served at all? A million of them under virtual time.

    python experiments/004-batching/bounded_wait.py                    # 10^6 requests, all choices
    python experiments/004-batching/bounded_wait.py --requests 100000

`max_wait_s` says how long a batch may be formed around a request. Two things follow from it, and
both are checked for every dispatched request, at loads up to 1.2 of what full batches can serve:

* `served late`: the batcher as it is. At a load above capacity queues grow, so no promise about the
  wait as a whole can hold for everyone. What holds is that a request waits past its own bound only
  while every worker is busy: no worker that is free is ever held back.
* `shed`: `Batcher(sheds_overdue=True)`. Who is passed over by a free worker after the bound is
  rejected then, so whoever is served has waited at most its bound and one service (and a
  millisecond), at any load. The price is the share that is rejected, which the table shows.

First in, first out within each class is checked exactly, too. Arrivals are Poisson from the seed,
five classes; bounds of 0, 20, 100 and 500 ms; the service of n items takes 10 + 2n ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from omegaconf import OmegaConf

from capibench.batching.batcher import Batcher
from capibench.clock import run_virtual
from capibench.config import build, conf_dir
from capibench.errors import RequestShed

LOADS = (0.1, 0.4, 0.7, 0.9, 1.0, 1.1, 1.2)
BOUNDS_S = (0.0, 0.02, 0.1, 0.5)
SLACK_S = 0.001


@dataclass(frozen=True)
class Waits:
    """What one choice did at one load."""

    choice: str
    load: float
    sheds: bool
    num_requests: int
    num_shed: int
    worst_overrun_ms: float  # longest wait past a request's own bound
    service_ms: float  # of a full batch
    worst_held_back_ms: float  # longest wait past the bound beside a worker that was free
    num_out_of_order: int

    @property
    def kept(self) -> bool:
        """Whether what is promised was kept."""
        late = self.sheds and self.worst_overrun_ms > self.service_ms + SLACK_S * 1000
        return not late and self.worst_held_back_ms <= SLACK_S * 1000 and not self.num_out_of_order


class Engine:
    """10 + 2n ms for a call with n items; joined calls run side by side, n being all of them."""

    def __init__(self, room: int) -> None:
        self._room = room  # items that may run at once
        self._running = 0
        self._free_since_s = 0.0
        self.order: list[int] = []
        self.free_s: list[tuple[float, float]] = []  # from and to, when there was room

    async def __call__(self, contents: Sequence[int], worker: int) -> Sequence[int]:
        loop = asyncio.get_running_loop()
        self.order += contents
        had_room = self._running < self._room
        self._running += len(contents)
        if had_room and self._running >= self._room and loop.time() > self._free_since_s:
            self.free_s.append((self._free_since_s, loop.time()))
        await asyncio.sleep(service_s(self._running))
        if self._running >= self._room > self._running - len(contents):
            self._free_since_s = loop.time()
        self._running -= len(contents)
        return contents

    def held_back_s(self, from_s: float, to_s: float) -> float:
        """The longest time between the two in which there was room."""
        longest_s = 0.0
        for at in range(max(bisect_left(self.free_s, (from_s,)) - 1, 0), len(self.free_s)):
            begin_s, end_s = self.free_s[at]
            if begin_s >= to_s:
                break
            longest_s = max(longest_s, min(end_s, to_s) - max(begin_s, from_s))
        return longest_s


def service_s(num_items: int) -> float:
    """Seconds of a call beside which so many items run, its own included."""
    return 0.010 + 0.002 * num_items


def measure(choice: str, load: float, sheds: bool, num_requests: int, seed: int) -> Waits:
    """Run so many requests through `conf/batching/<choice>.yaml` at `load`."""
    return run_virtual(_run(choice, load, sheds, num_requests, seed))


async def _run(choice: str, load: float, sheds: bool, num_requests: int, seed: int) -> Waits:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "batching" / f"{choice}.yaml"))
    built = build(node, "batching")  # type: ignore[arg-type]
    most = built.strategy.max_batch_size
    generator = np.random.default_rng(seed)
    rate = load * most / service_s(most)
    arrivals_s = np.cumsum(generator.exponential(1 / rate, num_requests)).tolist()
    priorities = generator.integers(1, 6, num_requests).tolist()
    bounds_s = generator.choice(BOUNDS_S, num_requests).tolist()
    engine = Engine(most if built.strategy.joins_running else 1)
    batcher: Batcher[int, int] = Batcher(
        engine,
        built.strategy,
        1,
        num_requests,
        composition=built.composition,
        sheds_overdue=sheds,
    )
    batcher.start()
    loop = asyncio.get_running_loop()
    overruns_s: list[float] = []
    held_back_s: list[float] = []

    async def one(number: int) -> None:
        try:
            answered = await batcher.submit(
                number, priority=priorities[number], max_wait_s=bounds_s[number]
            )
        except RequestShed:
            return
        bound_s = answered.enqueued_s + bounds_s[number]
        overruns_s.append(answered.dispatched_s - bound_s)
        if overruns_s[-1] > SLACK_S:
            held_back_s.append(engine.held_back_s(bound_s, answered.dispatched_s))

    async with asyncio.TaskGroup() as tasks:
        for number, arrival_s in enumerate(arrivals_s):
            if arrival_s > loop.time():
                await asyncio.sleep(arrival_s - loop.time())
            tasks.create_task(one(number))
    await batcher.stop()
    lines: list[list[int]] = [[] for _ in range(6)]  # class → numbers in order of service
    for number in engine.order:
        lines[priorities[number]].append(number)
    return Waits(
        choice,
        load,
        sheds,
        num_requests,
        batcher.stats().num_rejected,
        max(overruns_s) * 1000,
        service_s(most) * 1000,
        max(held_back_s, default=0.0) * 1000,
        sum(b < a for line in lines for a, b in pairwise(line)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    known = sorted(path.stem for path in (conf_dir() / "batching").glob("*.yaml"))
    parser.add_argument("--choices", nargs="+", choices=known, default=known, metavar="NAME")
    chosen = parser.parse_args()
    each = -(-chosen.requests // (len(known) * len(LOADS) * 2))  # the same for part of the choices
    print(f"{'choice':14} load  mode         shed  past bound  (service)  held back  order")
    broken = []
    rows = []
    for name in chosen.choices:
        for load in LOADS:
            for sheds in (False, True):
                waits = measure(name, load, sheds, each, chosen.seed)
                rows.append(waits)
                if not waits.kept:
                    broken.append(waits)
                print(
                    f"{name:14} {load:4.1f}  {'shed' if sheds else 'served late':11} "
                    f"{waits.num_shed / each:6.1%} {waits.worst_overrun_ms:8.1f} ms "
                    f"{waits.service_ms:7.0f} ms {waits.worst_held_back_ms:7.3f} ms "
                    f"{waits.num_out_of_order:5}"
                )
    for waits in rows:
        print(json.dumps(asdict(waits)))
    print(f"{len(rows) * each} requests; " + (f"BROKEN: {broken}" if broken else "all kept"))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
