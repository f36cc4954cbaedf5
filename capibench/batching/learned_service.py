"""How long batches take, learned from those that ran: what the thinking strategies forecast with.

Service curves are neither affine nor monotone (a decode step of 16 rows may cost less than one of
8; a kernel has steps), so this is a table, and no shape is fitted to it. Pure: it is told sizes and
seconds and holds no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import median

MEMORY = 15  # batches per cell: odd, so that the median is one of them; 8 new ones turn it round
TRUSTED = 3  # batches from which on a median withstands an outlier
STALE = 500  # batches after which a size that did not run is worth another look
_ALL_TO = 64  # up to this size every size is weighed, beyond it eight between doublings


@lru_cache(maxsize=4096)
def sizes_to_weigh(least: int, most: int) -> Sequence[int]:
    """The batch sizes from `least` to `most` that a decision compares, both among them.

    All of them up to 64. Beyond, eight from doubling to doubling, always the same ones, so that
    they become known: a decision costs what it costs at 64, and nothing is learned from 1,007 that
    1,024 does not tell.
    """
    if most <= _ALL_TO:
        return range(least, most + 1)
    sizes = set(range(least, _ALL_TO + 1)) | {least, most}
    step, start = _ALL_TO // 8, _ALL_TO
    while start < most:
        sizes |= {size for size in range(start, 2 * start, step) if least <= size <= most}
        start, step = 2 * start, 2 * step
    return sorted(sizes)


class LearnedService:
    """Seconds of service by batch size and by length of the longest item.

    A row is a bucket of lengths, which double from bucket to bucket; a cell is one size in it, so
    at a given size the rows are buckets of padded tokens (size times longest). The centre of a cell
    is the median of its last `MEMORY` batches: a pause of the machine does not move it, and it
    forgets a machine that has changed. What is missing comes from neighbours:

    * A size without batches lies linearly between its two known neighbours in the row, and a cell
      of fewer than `TRUSTED` batches leans on them for the rest.
    * Beyond the known sizes of a row, the next row that knows better lends its proportion between
      the two sizes. If none does, a larger batch is taken to cost no more than the largest known:
      too hopeful, so that it gets tried.
    * A length without a row is taken to cost what the nearest length does.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._by_size: dict[int, _Recent] = {}  # whatever the length: what is known at all
        self._last_ran: dict[int, int] = {}  # size → number of the batch
        self._num_batches = 0

    def __bool__(self) -> bool:
        return self._num_batches > 0

    @property
    def num_batches(self) -> int:
        """Batches observed so far."""
        return self._num_batches

    def observe(self, size: int, longest: int, service_s: float) -> None:
        """One batch of `size` items, the longest of `longest` tokens (0: unknown), took this."""
        self._num_batches += 1
        self._last_ran[size] = self._num_batches
        self._by_size.setdefault(size, _Recent()).add(service_s)
        self._rows.setdefault(longest.bit_length(), _Row()).add(size, service_s)

    def seconds(self, size: int, longest: int) -> float:
        """Expected seconds of such a batch; asked only when something was observed."""
        bucket = longest.bit_length()
        row = self._rows.get(bucket)
        if row is not None and size in row.trusted_s:
            return row.trusted_s[size]
        if row is None:
            row = self._rows[min(self._rows, key=lambda known: (abs(known - bucket), -known))]
        if row.covers(size) or len(self._rows) == 1:
            return row.seconds(size)
        edge = row.nearest(size)
        others = [
            (abs(known - bucket), -known)
            for known, other in self._rows.items()
            if other.covers(size) and other.covers(edge)
        ]
        if not others:
            return row.seconds(size)
        other = self._rows[-min(others)[1]]
        proportion = other.seconds(size) / edge_s if (edge_s := other.seconds(edge)) > 0 else 1.0
        return row.seconds(edge) * proportion

    def trusted_s(self, longest: int) -> Mapping[int, float]:
        """Of the sizes that are well known at such a length what `seconds` says; for those who ask
        often. It changes with `observe`."""
        row = self._rows.get(longest.bit_length())
        return {} if row is None else row.trusted_s

    def shortest_s(self) -> float:
        """No batch is expected to take less; 0 while too little is known to say so."""
        if self._num_batches < TRUSTED:
            return 0.0
        return min(row.shortest_s for row in self._rows.values())

    def is_trusted(self, size: int) -> bool:
        """Whether enough batches of this size ran for their median to mean something."""
        known = self._by_size.get(size)
        return known is not None and known.count >= TRUSTED

    def is_fresh(self, size: int) -> bool:
        """Whether it is trusted and ran not too long ago."""
        return self.is_trusted(size) and self._num_batches - self._last_ran[size] < STALE

    def hopeful(self, sizes: Iterable[int]) -> int | None:
        """A size that may have the best rate of all: one batch more would tell. None: there is
        none, so the best known size is the best, unless the table dips where nobody expects it.

        First a size that had the best rate in its one or two batches. Then, of those that never
        ran, the one farthest (in proportion) from all that did, if at the seconds of its quicker
        neighbour it would have the best rate. That bisects: a step in the table is found in about
        log2 batches, and each trial makes sizes around it hopeless.
        """
        ran = sorted(self._by_size)
        best_per_s = max(known.per_s(size) for size, known in self._by_size.items())
        hopeful: list[tuple[float, int]] = []
        for size in sizes:
            known = self._by_size.get(size)
            if known is not None:
                if known.count < TRUSTED and known.per_s(size) >= best_per_s:
                    return size
                continue
            at = bisect_left(ran, size)
            beside = ran[max(0, at - 1) : at + 1]
            if max(self._by_size[other].per_s(size) for other in beside) > best_per_s:
                gap = min(abs(math.log(size / other)) for other in beside)
                hopeful.append((-gap, size))
        return min(hopeful)[1] if hopeful else None

    def hardly_known(self, sizes: Iterable[int]) -> int | None:
        """A size of few batches or none, or else the one that ran longest ago, if that is long
        ago. None: all are well and freshly known."""
        best: tuple[int, int, int] | None = None
        for size in sizes:
            known, ran = self._by_size.get(size), self._last_ran.get(size, 0)
            count = 0 if known is None else known.count
            if count < TRUSTED or self._num_batches - ran >= STALE:
                wanting = min(count, TRUSTED), ran, size
                if best is None or wanting < best:
                    best = wanting
        return None if best is None else best[2]


class _Row:
    """Seconds by size, for one bucket of lengths."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._cells: dict[int, _Recent] = {}
        self.trusted_s: dict[int, float] = {}  # size → median of enough batches
        self.shortest_s = float("inf")

    def add(self, size: int, service_s: float) -> None:
        if size not in self._cells:
            insort(self._sizes, size)
            self._cells[size] = _Recent()
        cell = self._cells[size]
        cell.add(service_s)
        if cell.count >= TRUSTED:
            self.trusted_s[size] = cell.median
        self.shortest_s = min(cell.median for cell in self._cells.values())

    def covers(self, size: int) -> bool:
        """Whether `size` is known or lies between two known ones."""
        return self._sizes[0] <= size <= self._sizes[-1]

    def nearest(self, size: int) -> int:
        """The end of the known sizes that is next to `size`, which they do not cover."""
        return self._sizes[0] if size < self._sizes[0] else self._sizes[-1]

    def seconds(self, size: int) -> float:
        if size in self.trusted_s:
            return self.trusted_s[size]
        cell = self._cells.get(size)
        if cell is not None and len(self._sizes) == 1:
            return cell.median
        at = bisect_left(self._sizes, size)
        below = self._sizes[at - 1] if at > 0 else None
        above_at = at if cell is None else at + 1
        above = self._sizes[above_at] if above_at < len(self._sizes) else None
        if below is None or above is None:
            only = below if above is None else above
            assert only is not None
            between_s = self._cells[only].median
        else:
            below_s, above_s = self._cells[below].median, self._cells[above].median
            between_s = below_s + (above_s - below_s) * (size - below) / (above - below)
        if cell is None:
            return between_s
        return (cell.count * cell.median + (TRUSTED - cell.count) * between_s) / TRUSTED


class _Recent:
    """The last few values and their median."""

    __slots__ = ("_values", "count", "median")

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=MEMORY)
        self.count = 0
        self.median = 0.0

    def add(self, value: float) -> None:
        self._values.append(value)
        self.count = len(self._values)
        self.median = median(self._values)

    def per_s(self, size: int) -> float:
        return size / self.median if self.median > 0 else float("inf")
