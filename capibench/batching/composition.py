"""Which of the waiting items leave together: an option of every strategy, apart from the when.

A batch of texts of unequal length is padded to its longest, and the padding is computed like text.
So the size of a batch in tokens is rows times longest, and it pays to send like with like: sorted
by length, mixed texts embed faster than one by one; in order of arrival they embed slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from capibench.errors import ConfigError

if TYPE_CHECKING:
    from capibench.batching.strategy import WaitingItems

Order = Literal["arrival", "similar_length"]


@dataclass(frozen=True)
class Composition:
    """Picks a batch out of the line that a strategy serves.

    Whatever the order, the head of the line is in the batch, so nobody starves: an item with k
    others before it leaves with one of the next k + 1 batches.

    * `arrival`: the line as it stands, cut where the next item would exceed the token budget. Keeps
      first in, first out within a class exactly.
    * `similar_length`: the head, and of the next `look_ahead` items those nearest to it in length,
      as length bucketing does for training batches (Khomenko et al. 2016). A class never gives way
      to a lower one: an item is passed over only for its own class, or because it does not fit.

    Attributes:
        order: as above.
        max_batch_tokens: bound of rows times longest, in tokens; None: no bound.
        look_ahead: how many items at the front of the line `similar_length` looks at.
    """

    order: Order
    max_batch_tokens: int | None
    look_ahead: int

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(
                f"order: got {self.order!r}; expected one of {', '.join(get_args(Order))}"
            )
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            raise ValueError(
                f"max_batch_tokens: got {self.max_batch_tokens}; expected at least 1, or null"
            )
        if self.look_ahead < 1:
            raise ValueError(f"look_ahead: got {self.look_ahead}; expected at least 1")

    def check(self, num_tokens: int) -> None:
        """Refuse an item that no batch can hold, before it waits for one.

        Raises:
            ConfigError: alone it exceeds the token budget.
        """
        if self.max_batch_tokens is not None and num_tokens > self.max_batch_tokens:
            raise ConfigError(
                "batching.composition.max_batch_tokens",
                f"got {self.max_batch_tokens}; expected at least {num_tokens}, "
                "the size of this request alone",
            )

    def reach(self, limit: int) -> int:
        """How much of the line `choose` wants to see for a batch of at most `limit` items."""
        return limit if self.order == "arrival" else max(limit, self.look_ahead)

    def choose(
        self, items: WaitingItems, line: Sequence[int], limit: int, num_urgent: int = 0
    ) -> Sequence[int]:
        """Pick at most `limit` of the indices in `line`, in the order of `line`.

        Args:
            items: the queue that `line` points into.
            line: indices in the order of service, `reach(limit)` of them or all there are.
            num_urgent: so many at the front of `line` count as one class above all others.

        Costs O(limit) for `arrival` (O(1) without a budget), O(look_ahead log look_ahead) else.
        """
        if self.order == "arrival":
            if self.max_batch_tokens is None:
                return line[:limit]
            wanted: Sequence[int] = range(min(limit, len(line)))  # positions in `line`
        else:
            head_tokens = items[line[0]].num_tokens
            wanted = sorted(
                range(len(line)),
                key=lambda position: (
                    position > 0,
                    position >= num_urgent,
                    0 if position < num_urgent else items[line[position]].priority,
                    abs(items[line[position]].num_tokens - head_tokens),
                    position,
                ),
            )
        return [line[position] for position in sorted(self._fitting(items, line, wanted, limit))]

    def _fitting(
        self, items: WaitingItems, line: Sequence[int], wanted: Sequence[int], limit: int
    ) -> list[int]:
        budget = float("inf") if self.max_batch_tokens is None else self.max_batch_tokens
        fitting: list[int] = []
        longest = 0
        for position in wanted:
            if len(fitting) == limit:
                break
            would_be = max(longest, items[line[position]].num_tokens)
            if fitting and would_be * (len(fitting) + 1) > budget:
                if self.order == "arrival":
                    break
                continue
            fitting.append(position)
            longest = would_be
        return fitting


AS_THEY_CAME = Composition(order="arrival", max_batch_tokens=None, look_ahead=1)
