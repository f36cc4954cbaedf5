"""A worker that answers its batches with errors: it rests, is probed, and is not a black hole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from choice_files import choices
from queue_views import IDLE, item, shipped, view

from capibench.batching.batcher import Batcher
from capibench.batching.strategy import Dispatch, WaitUntil, WorkerView
from capibench.clock import run_virtual
from capibench.errors import WorkerBroken

BUSY = WorkerView(4, 0.9)
ALL = choices("batching")


def failing(num_failures: int, failed_s: float = 1.0) -> WorkerView:
    return WorkerView(0, None, num_failures, failed_s)


@pytest.mark.parametrize(
    ("num_failures", "rest_s"), [(1, 0.1), (2, 0.2), (4, 0.8), (9, 25.6), (10, 30.0), (2000, 30.0)]
)
def test_it_rests_for_longer_and_longer(num_failures: int, rest_s: float) -> None:
    seen = view([item(1.0)] * 3, 1.0, [failing(num_failures), BUSY])
    rests = seen.probe_or_rest()
    assert isinstance(rests, WaitUntil)
    assert rests.time_s == pytest.approx(1.0 + rest_s)
    seen = view([item(1.0)] * 3, 1.0 + rest_s, [failing(num_failures), BUSY])
    assert seen.probe_or_rest() == Dispatch(range(1), 0, "probe")


def test_it_is_probed_only_where_no_sound_worker_is_idle() -> None:
    rested = failing(1, -9.0)
    assert view([item(1.0)], 1.0, [rested, IDLE]).probe_or_rest() is None
    assert view([item(1.0)], 1.0, [rested, IDLE]).idle_worker() == 1
    probe = Dispatch(range(1), 0, "probe")
    assert view([item(1.0)], 1.0, [rested, BUSY]).probe_or_rest(room=5) == probe
    assert view([item(1.0)], 1.0, [failing(1), BUSY]).probe_or_rest(room=5) is None
    assert view([item(1.0)], 1.0, [failing(2), failing(1)]).probe_or_rest() is None
    assert view([item(1.0)], 1.0, [failing(2), failing(1), failing(1, 0.5)]).idle_worker() == 2
    assert view([item(1.0)], 1.0, [failing(9)]).probe_or_rest() is None  # there is no other
    assert view([item(1.0)], 1.0, [failing(9)]).idle_worker() == 0
    probed = WorkerView(1, 0.95, 1, 0.5)  # one item runs on it, and nobody joins that
    assert isinstance(view([item(1.0)], 1.0, [probed, BUSY]).probe_or_rest(room=4), WaitUntil)


@pytest.mark.parametrize("name", ALL)
def test_every_strategy_waits_for_a_sound_busy_worker_and_probes_with_one_item(name: str) -> None:
    strategy = shipped(name)
    full = WorkerView(strategy.max_batch_size, 0.9)
    for now_s, workers in ((1.04, [failing(1), full]), (1.04, [full, failing(1)])):
        decision = shipped(name).decide(view([item(0.9)] * 32, now_s, workers))
        assert isinstance(decision, WaitUntil)
        assert decision.time_s == pytest.approx(1.1)
    decision = strategy.decide(view([item(0.9)] * 32, 1.1, [full, failing(1)]))
    assert isinstance(decision, Dispatch)
    assert (decision.worker, len(decision.indices), decision.reason) == (1, 1, "probe")


@pytest.mark.parametrize("name", [name for name in ALL if name != "none"])
def test_a_broken_worker_among_three_costs_few_requests_and_is_used_again_when_mended(
    name: str,
) -> None:
    """60/s for 15 s, n in 50 + 10n ms: worker 1 raises from second 1 to 5. Who met it before it was
    known is lost, and one after each rest; the last rest ends before second 9."""
    served_after_s, source = [[], [], []], random.Random(2)  # type: ignore[var-annotated]

    async def process(contents: Sequence[int], worker: int) -> Sequence[int]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.050 + 0.010 * len(contents))
        if worker == 1 and 1.0 <= loop.time() < 5.0:
            raise WorkerBroken("worker 1 is broken")
        served_after_s[worker].append(loop.time())
        return contents

    async def main() -> list[int | BaseException]:
        made: Batcher[int, int] = Batcher(process, shipped(name), 3, 1000)
        made.start()
        asked = []
        for number in range(900):
            asked.append(asyncio.create_task(made.submit(number)))
            await asyncio.sleep(source.expovariate(60))
        ends = await asyncio.gather(*asked, return_exceptions=True)
        await made.stop()
        return [end if isinstance(end, BaseException) else end.value for end in ends]

    ends = run_virtual(main())
    lost = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, WorkerBroken) for end in lost)
    assert 1 <= len(lost) <= 15
    assert sum(at_s > 10.0 for at_s in served_after_s[1]) >= 5
