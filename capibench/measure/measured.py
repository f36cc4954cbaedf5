"""The rows of one run as arrays, ready for the formulas of the metric table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from capibench.measure.slo import Slo
from capibench.measure.stats import Array
from capibench.records import STAGES, RequestStatus

Relevance = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""question id → (ids of relevant passages, reference answers)"""


class Window(Protocol):
    """The measurement window (begin, end] on the run's clock, as the load's driver saw it.

    Open loop: from the end of the warm-up's schedule to the last scheduled arrival, so that the
    drain adds nothing. Closed loop: from the first to the last moment at which a user was due.
    """

    @property
    def begin_s(self) -> float: ...

    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True)
class Measured:
    """What a formula may look at. `frame` holds the measured rows only, by intended time.

    `all_rows` holds the warm-up as well: completing it is work that was done in the window.
    """

    frame: Any  # pandas.DataFrame with RECORD_COLUMNS
    all_rows: Any
    facts: Mapping[str, float | None]
    window: Window
    slo: Slo
    seed: int
    relevance: Relevance | None
    modeled: bool

    @cached_property
    def ok(self) -> Any:
        """Successful measured rows, by intended time."""
        return self.frame[self.frame["status"] == RequestStatus.OK.value]

    @cached_property
    def success(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.frame["status"] == RequestStatus.OK.value, dtype=np.bool_)

    def column(self, name: str) -> Array:
        """A numeric column of the successful rows, missing values as NaN."""
        return np.asarray(self.ok[name].astype("float64"))

    @cached_property
    def e2e_s(self) -> Array:
        """End-to-end seconds of the successful rows, from the scheduled arrival."""
        return self.column("done_s") - self.column("intended_s")

    def stage_s(self, stage: str) -> Array:
        """Seconds that successful rows spent in a stage, those that never entered it left out."""
        return self.column(f"{stage}_s")[self._entered(stage)]

    def _entered(self, stage: str) -> npt.NDArray[np.bool_]:
        """Which successful rows did that: by what became of them, for waiting may take no time."""
        ok = self.ok
        if stage.endswith("_cache"):
            return np.asarray(ok[stage] != "off", dtype=np.bool_)
        if stage in ("generate_queue", "generate"):
            return np.asarray(ok["batch_id"].notna(), dtype=np.bool_)
        if stage == "sender":
            return np.ones(len(ok), dtype=np.bool_)
        answered = ("l1", "l2", "joined")  # without computing anything
        if stage in ("embed_queue", "embed"):
            entered = ~ok["result_cache"].isin(answered)
            entered &= ~ok["embedding_cache"].isin(("l1", "l2"))
        else:
            entered = ~ok["result_cache"].isin((*answered, "semantic"))
        return np.asarray(entered, dtype=np.bool_)

    @cached_property
    def stage_sum_s(self) -> Array:
        return np.asarray(sum(self.column(f"{stage}_s") for stage in STAGES), dtype=np.float64)

    @cached_property
    def ttft_s(self) -> Array:
        """Scheduled arrival → first token, of the rows for which tokens were generated."""
        durations = self.column("first_token_s") - self.column("intended_s")
        known: Array = durations[~np.isnan(durations)]
        return known

    @cached_property
    def tpot_s(self) -> Array:
        """Seconds per token after the first, of the rows with at least two tokens."""
        tokens = self.column("output_tokens")
        spans = self.column("last_token_s") - self.column("first_token_s")
        several = (tokens >= 2) & ~np.isnan(spans)
        return np.asarray(spans[several] / (tokens[several] - 1.0))

    @cached_property
    def sender_late_s(self) -> Array:
        """How late each measured request was sent, successful or not."""
        late = np.asarray(self.frame["sent_s"] - self.frame["intended_s"], dtype=np.float64)
        return np.maximum(late, 0.0)

    @property
    def duration_s(self) -> float:
        return self.window.end_s - self.window.begin_s

    def in_window(self, times: Any) -> npt.NDArray[np.bool_]:
        """Which of `times` lie inside the window."""
        array = np.asarray(times, dtype=np.float64)
        return (array > self.window.begin_s) & (array <= self.window.end_s)

    @cached_property
    def done_in_window(self) -> Any:
        """Successful rows of any phase that were completed inside the window (begin, end]."""
        ok = self.all_rows[self.all_rows["status"] == RequestStatus.OK.value]
        return ok[self.in_window(ok["done_s"])]

    @cached_property
    def good(self) -> npt.NDArray[np.bool_]:
        """For every measured row: answered, within its objectives and before its deadline."""
        frame = self.frame
        intended = np.asarray(frame["intended_s"], dtype=np.float64)
        e2e = np.asarray(frame["done_s"], dtype=np.float64) - intended
        good = self.success & (e2e <= self.slo.bounds_s(np.asarray(frame["priority"], dtype=int)))
        deadline = np.asarray(frame["deadline_s"].astype("float64"))
        good &= np.isnan(deadline) | (e2e <= deadline)
        if self.slo.ttft_ms is not None:
            first = np.asarray(frame["first_token_s"].astype("float64")) - intended
            first = np.where(np.isnan(first), e2e, first)  # answered from a cache: all at once
            good &= first <= self.slo.ttft_ms / 1e3
        return np.asarray(good, dtype=np.bool_)

    def lookups(self, cache: str) -> npt.NDArray[np.str_]:
        """Outcomes of the look-ups that really consulted this cache; see `RequestRecord`."""
        outcomes = np.asarray(self.frame[f"{cache}_cache"].astype(str))
        consulted: npt.NDArray[np.str_] = outcomes[outcomes != "off"]
        return consulted

    @cached_property
    def batches(self) -> Any:
        """One row per generation batch that measured requests were part of."""
        batched = self.frame[self.frame["batch_id"].notna()]
        return batched.drop_duplicates("batch_id")
