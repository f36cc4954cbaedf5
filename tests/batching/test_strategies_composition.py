"""Who leaves together: the head always, the budget kept, like with like, refusals in words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from choice_files import choices, load_choice
from hypothesis import given
from hypothesis import strategies as st

from capibench.batching.batcher import Batcher
from capibench.batching.composition import AS_THEY_CAME, Composition
from capibench.batching.strategies.fixed_size import FixedSize
from capibench.batching.strategies.greedy import Greedy
from capibench.batching.strategy import QueueView, WaitingItem, WaitUntil, WorkerView
from capibench.batching.waiting import WaitingQueue
from capibench.clock import run_virtual
from capibench.config import build
from capibench.errors import ConfigError

INFINITY = float("inf")


def waiting(sizes: Sequence[tuple[int, int]]) -> list[WaitingItem]:
    """Items of (priority, tokens)."""
    return [WaitingItem(priority, tokens, 0.0, INFINITY, INFINITY) for priority, tokens in sizes]


def view(items: Sequence[WaitingItem], composition: Composition, now_s: float = 0.0) -> QueueView:
    return QueueView(WaitingQueue(items), now_s, (WorkerView(0, None),), False, composition)


lines = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=40)
compositions = st.builds(
    Composition,
    order=st.sampled_from(["arrival", "similar_length"]),
    max_batch_tokens=st.one_of(st.none(), st.integers(60, 400)),
    look_ahead=st.integers(1, 50),
)


@given(line=lines, composition=compositions, limit=st.integers(1, 12))
def test_a_batch_holds_the_head_keeps_the_budget_and_prefers_higher_classes(
    line: list[tuple[int, int]], composition: Composition, limit: int
) -> None:
    items = waiting(line)
    order = sorted(range(len(items)), key=lambda i: (items[i].priority, i))
    batch = list(view(items, composition).batch(limit))
    assert batch[0] == order[0]
    assert 1 <= len(batch) <= limit
    assert batch == [i for i in order if i in batch]  # no index twice, in order of service
    budget = composition.max_batch_tokens
    if budget is not None:
        assert len(batch) * max(items[i].num_tokens for i in batch) <= budget
    if composition.order == "arrival":
        assert batch == order[: len(batch)]
        if len(batch) < min(limit, len(order)):  # the next one really did not fit
            longest = max(items[i].num_tokens for i in order[: len(batch) + 1])
            assert budget is not None
            assert longest * (len(batch) + 1) > budget
    else:
        seen = order[: max(limit, composition.look_ahead)]
        assert set(batch) <= set(seen)
        head = items[seen[0]].num_tokens
        for left in set(seen) - set(batch):
            for taken in batch[1:]:
                if budget is None and items[left].priority < items[taken].priority:
                    raise AssertionError("a class gave way to a lower one")
                if budget is None and items[left].priority == items[taken].priority:
                    far, near = items[left].num_tokens - head, items[taken].num_tokens - head
                    assert abs(near) <= abs(far)


@given(line=lines, composition=compositions, limit=st.integers(1, 12))
def test_who_has_k_before_him_leaves_with_one_of_the_next_k_plus_1_batches(
    line: list[tuple[int, int]], composition: Composition, limit: int
) -> None:
    items = waiting(line)
    order = sorted(items, key=lambda one: one.priority)
    before = {id(one): k for k, one in enumerate(order)}
    for number in range(len(items)):
        batch = view(items, composition).batch(limit)
        items = [one for index, one in enumerate(items) if index not in batch]
        assert all(before[id(one)] > number for one in items)
        if not items:
            return


def test_similar_length_takes_the_nearest_and_arrival_the_first() -> None:
    items = waiting([(3, 10), (3, 90), (3, 12), (3, 80), (3, 9)])
    assert list(view(items, AS_THEY_CAME).batch(3)) == [0, 1, 2]
    similar = Composition("similar_length", None, look_ahead=8)
    assert list(view(items, similar).batch(3)) == [0, 2, 4]
    assert list(view(items[1:], Composition("similar_length", None, 2)).batch(2)) == [0, 1]
    mixed = waiting([(3, 10), (1, 90), (3, 88), (2, 11)])
    assert list(view(mixed, similar).batch(3)) == [1, 3, 2]


def test_the_budget_counts_padding() -> None:
    items = waiting([(3, 10), (3, 10), (3, 40), (3, 10)])
    assert list(view(items, Composition("arrival", 60, 1)).batch(8)) == [0, 1]
    assert list(view(items, Composition("similar_length", 60, 8)).batch(8)) == [0, 1, 3]
    assert list(view(items[2:], Composition("arrival", 60, 1)).batch(8)) == [0]


def test_a_batch_that_its_budget_fills_is_full() -> None:
    fixed = FixedSize(4, 1, 20.0, 20.0)
    items = waiting([(3, 10), (3, 40)])
    patient = fixed.decide(view(items, Composition("arrival", 80, 1)))
    assert patient == WaitUntil(0.02)
    sent = fixed.decide(view(items, Composition("arrival", 60, 1)))
    assert (list(sent.indices), sent.reason) == ([0], "full")  # type: ignore[union-attr]
    greedy = Greedy(4).decide(view(items, Composition("arrival", 60, 1)))
    assert (list(greedy.indices), greedy.reason) == ([0], "full")


@pytest.mark.parametrize("name", [name for name in choices("batching") if name != "continuous"])
def test_padding_shrinks_with_similar_length(name: str) -> None:
    """Every strategy under the same mixed load: the option saves computed tokens in all."""

    async def padding(order: str) -> float:
        node = load_choice("batching", name)
        node["strategy"]["max_batch_size"] = min(4, node["strategy"]["max_batch_size"])
        node["composition"]["order"] = order
        chosen = build(node, "batching")
        made: Batcher[int, int] = Batcher(
            echo, chosen.strategy, 1, 100, composition=chosen.composition
        )
        made.start()
        sizes = [10, 100] * 24
        await asyncio.gather(*(made.submit(size, num_tokens=size) for size in sizes))
        await made.stop()
        stats = made.stats()
        assert stats.real_tokens == sum(sizes)
        assert stats.padded_tokens is not None
        return stats.padded_tokens / stats.real_tokens

    arrival, similar = run_virtual(padding("arrival")), run_virtual(padding("similar_length"))
    if name == "none":
        assert arrival == similar == 1.0
    else:
        assert arrival > 1.5
        assert similar < 1.2


async def echo(contents: Sequence[int], worker: int) -> Sequence[int]:
    await asyncio.sleep(0.01)
    return contents


def test_a_request_over_the_budget_is_refused_and_the_rest_served() -> None:
    async def main() -> None:
        made: Batcher[int, int] = Batcher(
            echo, Greedy(8), 1, 100, composition=Composition("arrival", 100, 1)
        )
        made.start()
        answers = await asyncio.gather(
            *(made.submit(size, num_tokens=size) for size in (100, 101, 50)), return_exceptions=True
        )
        await made.stop()
        assert isinstance(answers[1], ConfigError)
        assert str(answers[1]) == (
            "batching.composition.max_batch_tokens: got 100; "
            "expected at least 101, the size of this request alone"
        )
        assert [one.value for one in (answers[0], answers[2])] == [100, 50]  # type: ignore[union-attr]
        assert made.stats().num_rejected == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "random"}, "order: got 'random'; expected one of arrival, similar_length"),
        ({"max_batch_tokens": 0}, "max_batch_tokens: got 0; expected at least 1, or null"),
        ({"look_ahead": 0}, "look_ahead: got 0; expected at least 1"),
    ],
)
def test_senseless_compositions_are_refused(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"order": "arrival", "max_batch_tokens": None, "look_ahead": 8}
    with pytest.raises(ValueError) as raised:
        Composition(**{**values, **change})
    assert str(raised.value) == message
