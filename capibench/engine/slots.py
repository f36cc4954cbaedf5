"""Keys and values of the rows that decode together in iteration-level batching.

Rows join and leave between steps, so they have lengths of their own. Each keeps its past at the
front of a slot; the rows alive are always the first slots, so that attention reads one view over
all of them up to the longest, and a step appends one position per row in place. A row that leaves
gives its slot to the last one: one row is copied, the rest lies where it lay.

The past is zero where it was never written: attention multiplies what its mask hides by 0, and
0 times what memory happens to hold need not be 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capibench.engine.kv_int8 import quantize_states

_BLOCK = 64  # positions by which slots grow


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one position of one row holds: a key and a value per layer and head."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    def empty(self, positions: int) -> Tensor:
        """[layers, key or value, heads, positions, size], not initialized."""
        return torch.empty(
            (self.layers, 2, self.heads, positions, self.size), dtype=self.dtype, device=self.device
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Where one step's new position of every row goes, the same in all layers."""

    num_rows: int
    longest: int  # positions of the longest row, the new one included
    in_slots: Tensor  # [heads · rows], flat indices into slots · heads · capacity
    in_view: Tensor  # the same into rows · heads · longest


class Slots(ABC):
    """Storage [layers, 2, slots, heads, capacity, size] that grows as rows need it."""

    def __init__(self, shape: KvShape) -> None:
        self.shape = shape
        self.lengths: list[int] = []  # of the rows alive, in slot order
        self._num_slots = 0
        self._capacity = 0
        self._head_numbers = torch.arange(shape.heads, device=shape.device)[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, reserved places too."""
        return sum(states.nbytes for states in self._states())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position of one row."""
        return self.nbytes // (self._num_slots * self._capacity)

    def reserve(self, num_slots: int, num_positions: int) -> None:
        """Make room; storage that is large enough already stays as it is."""
        if num_slots <= self._num_slots and num_positions <= self._capacity:
            return
        self._num_slots = max(num_slots, self._num_slots)
        self._capacity = max(-(-num_positions // _BLOCK) * _BLOCK, self._capacity)
        self._grow(self._num_slots, self._capacity)

    def insert(self, states: Tensor, num_positions: int) -> None:
        """Add a row whose past is `states` [layers, 2, heads, positions, size] and that will grow
        to `num_positions`."""
        slot, length = len(self.lengths), states.shape[3]
        # Twice as many slots at a time: growing copies all of them.
        wanted = self._num_slots if slot < self._num_slots else max(1, 2 * slot)
        self.reserve(wanted, num_positions)
        self._write(slot, states, length)
        self.lengths.append(length)

    def remove(self, slots: Sequence[int]) -> list[int]:
        """Take rows out. Returns for every remaining slot which slot its row had before."""
        order = list(range(len(self.lengths)))
        for slot in sorted(slots, reverse=True):
            last = len(self.lengths) - 1
            if slot != last:
                self._move(last, slot, self.lengths[last])
                self.lengths[slot], order[slot] = self.lengths[last], order[last]
            self.lengths.pop()
            order.pop()
        return order

    def clear(self) -> None:
        """Forget all rows; the storage stays."""
        self.lengths.clear()

    def next_places(self) -> Places:
        """Give every row one position more."""
        device, heads = self.shape.device, self.shape.heads
        last = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        num_rows, longest = len(self.lengths), max(self.lengths)
        numbers = torch.arange(num_rows, device=device) * heads + self._head_numbers
        return Places(
            num_rows,
            longest,
            (numbers * self._capacity + last).flatten(),
            (numbers * longest + last).flatten(),
        )

    def append(
        self, layer: int, keys: Tensor, values: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Write `keys` and `values` [heads, rows, size] at `places`; what attention is to see:
        [rows, heads, longest, size] each."""
        return self._append(layer, 0, keys, places), self._append(layer, 1, values, places)

    @abstractmethod
    def _states(self) -> Sequence[Tensor]:
        """All storage, positions on axis 4 and slots on axis 2."""

    @abstractmethod
    def _grow(self, num_slots: int, capacity: int) -> None:
        """Replace the storage by a larger one with the same rows."""

    @abstractmethod
    def _write(self, slot: int, states: Tensor, length: int) -> None:
        """Fill the front of a slot."""

    @abstractmethod
    def _append(self, layer: int, side: int, new: Tensor, places: Places) -> Tensor:
        """Write one position of keys (side 0) or values (1) and return the past with it."""

    def _move(self, source: int, target: int, length: int) -> None:
        for states in self._states():
            states[:, :, target, :, :length] = states[:, :, source, :, :length]

    def _grown(self, states: Tensor, num_slots: int, capacity: int) -> Tensor:
        layers, sides, _, heads, _, size = states.shape
        grown = states.new_zeros((layers, sides, num_slots, heads, capacity, size))
        num_rows = len(self.lengths)
        if num_rows:
            longest = max(self.lengths)
            grown[:, :, :num_rows, :, :longest] = states[:, :, :num_rows, :, :longest]
        return grown


class NativeSlots(Slots):
    """Keys and values in the model's precision, read where they lie."""

    def __init__(self, shape: KvShape) -> None:
        super().__init__(shape)
        self._kv = shape.empty(0)[:, :, None]

    def _states(self) -> Sequence[Tensor]:
        return (self._kv,)

    def _grow(self, num_slots: int, capacity: int) -> None:
        self._kv = self._grown(self._kv, num_slots, capacity)

    def _write(self, slot: int, states: Tensor, length: int) -> None:
        self._kv[:, :, slot, :, :length] = states

    def _append(self, layer: int, side: int, new: Tensor, places: Places) -> Tensor:
        states = self._kv[layer, side]
        size = states.shape[-1]
        states.view(-1, size).index_copy_(0, places.in_slots, new.reshape(-1, size))
        return states[: places.num_rows, :, : places.longest]


class Int8Slots(Slots):
    """Keys and values as int8 with a scale per position and head (see `kv_int8`): only what is
    past is read rounded, the newest position as it is."""

    def __init__(self, shape: KvShape) -> None:
        super().__init__(shape)
        exact = shape.empty(0)[:, :, None]
        self._q = exact.to(torch.int8)
        self._scales = exact[..., :1]

    def _states(self) -> Sequence[Tensor]:
        return self._q, self._scales

    def _grow(self, num_slots: int, capacity: int) -> None:
        self._q = self._grown(self._q, num_slots, capacity)
        self._scales = self._grown(self._scales, num_slots, capacity)

    def _write(self, slot: int, states: Tensor, length: int) -> None:
        q, scales = quantize_states(states)
        self._q[:, :, slot, :, :length] = q
        self._scales[:, :, slot, :, :length] = scales

    def _append(self, layer: int, side: int, new: Tensor, places: Places) -> Tensor:
        q, scales = self._q[layer, side], self._scales[layer, side]
        size = q.shape[-1]
        exact = new.reshape(-1, size)
        new_q, new_scales = quantize_states(exact)
        q.view(-1, size).index_copy_(0, places.in_slots, new_q)
        scales.view(-1, 1).index_copy_(0, places.in_slots, new_scales)
        rows, longest = places.num_rows, places.longest
        seen = new.new_empty((rows, q.shape[1], longest, size))
        seen.copy_(q[:rows, :, :longest]).mul_(scales[:rows, :, :longest])
        seen.view(-1, size).index_copy_(0, places.in_view, exact)
        return seen
