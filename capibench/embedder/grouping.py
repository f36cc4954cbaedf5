"""Which texts share a forward pass: padding a mixed batch to its longest text costs more than
batching gains, and a pass for each text gives away what batching gains."""

from __future__ import annotations

from collections.abc import Sequence


def group_by_length(
    num_tokens: Sequence[int], *, forward_tokens: int, max_padded_tokens: int
) -> list[list[int]]:
    """Divide the texts into forward passes so that all of them together are cheapest.

    A pass is taken to cost `forward_tokens` plus its rows times its longest text. Under that cost
    some best division has texts of neighbouring lengths in each pass (exchanging two texts so
    that the longer ones are together never lengthens a pass), so dynamic programming over the
    texts in order of length finds it. A pass for every text is one of the divisions looked at:
    the result never costs more, and the padding of a pass is at most `forward_tokens` for each
    text but the first.

    Args:
        num_tokens: of each text, at least 1.
        forward_tokens: what a pass costs besides its tokens, in tokens.
        max_padded_tokens: rows times longest text of one pass; a text alone may exceed it.

    Returns:
        indices of the texts of each pass; every text is in exactly one.
    """
    order = sorted(range(len(num_tokens)), key=num_tokens.__getitem__)
    cheapest = [0] * (len(order) + 1)  # of the texts before this one, in order of length
    begins = [0] * (len(order) + 1)  # where the last pass of that division begins
    for end, longest in enumerate((num_tokens[text] for text in order), start=1):
        rows = min(end, max(1, max_padded_tokens // longest))
        cheapest[end], begins[end] = min(
            (cheapest[begin] + forward_tokens + (end - begin) * longest, begin)
            for begin in range(end - rows, end)
        )
    groups = []
    end = len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups
