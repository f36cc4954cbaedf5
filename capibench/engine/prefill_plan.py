"""How much of which prompt the next iteration reads: the one rule of the real engine and of the
one that states its time."""

from __future__ import annotations

from collections.abc import Iterable


def plan_prefill(unread: Iterable[int], max_tokens: int | None) -> list[int]:
    """Tokens to read of each waiting prompt, in the order in which they came.

    Without a bound all are read at once, which stalls the decoding rows for as long as that takes.
    With one, the first prompts are read up to it and the others wait: reading all a little at a
    time would give none of them its first token earlier.

    Args:
        unread: tokens that each prompt has left, at least 1; asked for no further than needed.
        max_tokens: of one iteration, at least 1; None: no bound.
    """
    if max_tokens is None:
        return list(unread)
    pieces = []
    for tokens in unread:
        pieces.append(min(tokens, max_tokens))
        max_tokens -= pieces[-1]
        if max_tokens == 0:
            break
    return pieces
