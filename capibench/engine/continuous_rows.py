"""Greedy decoding where rows join and leave between steps: the state and one iteration of it.

Iteration-level scheduling is Orca's (OSDI 2022, section 3.1): after every step finished rows leave
and new ones begin, so that no row waits for a longer neighbour. Here is only what computes; who
joins when is the batching strategy's decision, and threads are `iteration_loop`'s business.

A prompt is read into memory of its own and moves into a slot when it has been read, so that rows
which still read are none of the decoding rows' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from capibench.engine.packed_attention import PackedRows, Piece, forward
from capibench.engine.prefill_plan import plan_prefill
from capibench.engine.prefix_cache import PrefixCache
from capibench.engine.slots import Slots


@dataclass(slots=True, eq=False)
class Row:
    """One prompt and what has been generated for it so far. Times are those of the clock given to
    `step`."""

    prompt: Sequence[int]
    num_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    num_reused: int = 0  # prompt tokens whose states were known already
    num_read: int = 0  # prompt tokens whose states exist
    states: Tensor | None = None  # of the prompt, while it is read

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.num_new_tokens


class ContinuousRows:
    """Rows of one model that advance together, one token each per iteration.

    In fp32 a row has the same tokens alone, in any company, with its prompt read whole or in
    pieces, and after a prefix that was kept. With int8 slots too, as a prompt is read over exact
    states whatever its pieces, except where arithmetic of another batch size moves a value across
    the border between two integers.

    Args:
        module: decoder whose attention is `packed_attention`.
        slots: empty; where rows keep their past.
        prefill_chunk_tokens: prompt tokens read per iteration at most; None: all there are.
        prefixes: kept beginnings of prompts, or None.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        slots: Slots,
        prefill_chunk_tokens: int | None,
        prefixes: PrefixCache | None,
    ) -> None:
        self._module = module
        self._slots = slots
        self._chunk_tokens = prefill_chunk_tokens
        self._prefixes = prefixes
        self._decoding: list[Row] = []  # in slot order
        self._reading: list[Row] = []  # in order of arrival
        self.num_iterations = 0
        self.num_decoded = 0  # rows that decoded, over all iterations
        self.num_prefilled = 0  # prompt tokens read, over all iterations

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._decoding or self._reading)

    def add(self, row: Row) -> None:
        """Let `row` take part from the next iteration on."""
        self._reading.append(row)

    @torch.inference_mode()
    def drop(self, rows: Iterable[Row]) -> None:
        """Forget `rows`, wherever they stand."""
        leaving = set(map(id, rows))
        self._reading = [row for row in self._reading if id(row) not in leaving]
        self._leave([slot for slot, row in enumerate(self._decoding) if id(row) in leaving])

    def clear(self) -> None:
        """Forget all rows."""
        self._reading.clear()
        self._decoding.clear()
        self._slots.clear()

    @torch.inference_mode()
    def step(self, now: Callable[[], float]) -> list[Row]:
        """One iteration: a token for every decoding row, and a part of the prompts that wait.

        Returns the rows that are done. After an exception the rows are in no usable state:
        `clear()`.
        """
        sizes = plan_prefill(map(self._unread, self._reading), self._chunk_tokens)
        reading = self._reading[: len(sizes)]
        decoding = self._decoding
        tokens = [row.tokens[-1] for row in decoding]
        positions = [len(row.prompt) + len(row.tokens) - 1 for row in decoding]
        wanted = list(range(len(decoding)))
        asked = list(decoding)  # whose next token each of `wanted` is
        pieces = []
        for row, size in zip(reading, sizes, strict=True):
            assert row.states is not None, "_unread() reserves them"
            begin, end = row.num_read, row.num_read + size
            pieces.append(Piece(row.states, begin, end))
            tokens += row.prompt[begin:end]
            positions += range(begin, end)
            if end == len(row.prompt):
                wanted.append(len(tokens) - 1)
                asked.append(row)
        packed = PackedRows(self._slots, pieces)
        # Where only parts of prompts are read there is no token to predict; one costs little.
        logits = forward(self._module, tokens, positions, wanted or [len(tokens) - 1], packed)
        found = logits.float().argmax(-1).tolist()  # in bf16 it is slower, see `decode`
        now_s = now()
        self.num_iterations += 1
        self.num_decoded += len(decoding)
        self.num_prefilled += sum(sizes)
        for row, piece in zip(reading, pieces, strict=True):
            row.num_read = piece.end
        for row, token in zip(asked, found[: len(asked)], strict=True):
            if not row.tokens:
                row.first_token_s = now_s
            row.tokens.append(token)
            row.last_token_s = now_s
        self._leave([slot for slot, row in enumerate(decoding) if row.done])
        for row in reading:
            if row.num_read == len(row.prompt):
                self._begin_to_decode(row)
        self._reading = [row for row in self._reading if row.num_read < len(row.prompt)]
        return [row for row in asked if row.done]

    def _unread(self, row: Row) -> int:
        """Prompt tokens that `row` has left; reserves their states when it is its turn."""
        if row.states is None:
            row.states = self._slots.shape.empty(len(row.prompt))
            for block in () if self._prefixes is None else self._prefixes.find(row.prompt):
                begin, row.num_read = row.num_read, row.num_read + block.shape[3]
                row.states[:, :, :, begin : row.num_read] = block
            row.num_reused = row.num_read
        return len(row.prompt) - row.num_read

    def _begin_to_decode(self, row: Row) -> None:
        states, row.states = row.states, None
        assert states is not None
        if self._prefixes is not None:
            self._prefixes.insert(row.prompt, states)
        if not row.done:
            # The last token is never fed back.
            self._slots.insert(states, len(row.prompt) + row.num_new_tokens - 1)
            self._decoding.append(row)

    def _leave(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        order = self._slots.remove(slots)
        self._decoding = [self._decoding[slot] for slot in order]
