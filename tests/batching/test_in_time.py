"""The batch that answers most in time, against every batch that there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from capibench.batching.in_time import most_in_time

classes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(sorted), min_size=1, max_size=3)


def best_of_all(due_s: Sequence[Sequence[float]], ends_s: Sequence[float]) -> list[int]:
    """How many of each class the best batch answers, by trying all; [] where there is none."""
    items = [(number, due) for number, line in enumerate(due_s) for due in line]
    best: list[int] = []
    for size in range(1, min(len(items), len(ends_s)) + 1):
        for batch in combinations(items, size):
            if all(due >= ends_s[size - 1] for _, due in batch):
                counts = [sum(number == k for number, _ in batch) for k in range(len(due_s))]
                best = max(best, counts)
    return best


@given(due_s=classes, ends_s=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_no_other_batch_answers_more(due_s: list[list[int]], ends_s: list[int]) -> None:
    size = most_in_time(due_s, list(enumerate(ends_s, start=1)))
    best = best_of_all(due_s, ends_s)
    assert (0 if size is None else size) == sum(best)


def test_the_largest_that_can_be_filled_although_a_smaller_one_takes_longer() -> None:
    assert most_in_time([[5, 5, 5, 9]], [(1, 6), (2, 9), (3, 5)]) == 3
    assert most_in_time([[5, 5, 5, 9]], [(1, 6), (2, 9), (3, 6)]) == 1
    assert most_in_time([[5, 5, 5, 9]], [(1, 4), (3, 6)]) == 1
    assert most_in_time([[5, 5]], [(1, 6), (2, 6)]) is None
