"""Texts divided into forward passes: against every possible division, and what is promised."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from capibench.embedder.grouping import group_by_length

lengths = st.lists(st.integers(1, 300), max_size=40)
forward = st.integers(0, 60)
budget = st.integers(1, 2000)


def divisions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to divide `items` into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for groups in divisions(rest):
        yield [[first], *groups]
        for i in range(len(groups)):
            yield [*groups[:i], [first, *groups[i]], *groups[i + 1 :]]


def padded(group: list[int]) -> int:
    return len(group) * max(group)


def cost(groups: list[list[int]], forward_tokens: int) -> int:
    return sum(forward_tokens + padded(group) for group in groups)


@given(st.lists(st.integers(1, 60), max_size=7), forward, st.integers(1, 200))
def test_no_division_is_cheaper(num_tokens: list[int], forward_tokens: int, most: int) -> None:
    found = group_by_length(num_tokens, forward_tokens=forward_tokens, max_padded_tokens=most)
    cheapest = min(
        cost(division, forward_tokens)
        for division in divisions(num_tokens)
        if all(len(group) == 1 or padded(group) <= most for group in division)
    )
    assert cost([[num_tokens[i] for i in group] for group in found], forward_tokens) == cheapest


@given(lengths, forward, budget)
def test_every_text_once_and_padding_within_its_bound(
    num_tokens: list[int], forward_tokens: int, most: int
) -> None:
    groups = group_by_length(num_tokens, forward_tokens=forward_tokens, max_padded_tokens=most)
    assert sorted(i for group in groups for i in group) == list(range(len(num_tokens)))
    for group in groups:
        texts = [num_tokens[i] for i in group]
        assert padded(texts) - sum(texts) <= forward_tokens * (len(texts) - 1)
        assert len(texts) == 1 or padded(texts) <= most


@given(lengths, budget)
def test_free_passes_pad_nothing(num_tokens: list[int], most: int) -> None:
    groups = group_by_length(num_tokens, forward_tokens=0, max_padded_tokens=most)
    assert all(len({num_tokens[i] for i in group}) == 1 for group in groups)
