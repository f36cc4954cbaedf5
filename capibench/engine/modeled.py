"""States how long the real engine takes instead of running it, so that hours of load pass in
seconds under virtual time.

The table is measured on `transformers_static` by `python -m capibench.engine.calibrate`. It is a
table and not a line because service curves are not affine: a decode step of 16 rows may cost less
than one of 8. What it leaves out: that a step grows with the length of the context, and noise.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from capibench.engine.engine import Generation, GenerationRequest
from capibench.errors import RequestFailed
from capibench.model.language_model import LanguageModel

TEXT = "[modeled: no text]"


@dataclass
class Modeled:
    """Service time of a batch: `base_s` + `prefill_s_per_token` · padded prompt tokens + one
    decode step per further token, each by the rows still alive.

    Prefill counts what the real engine computes: rows times the longest prompt.
    """

    num_workers: int
    base_s: float
    prefill_s_per_token: float
    decode_step_s: Mapping[int, float]
    chars_per_token: float

    modeled: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    joins_running: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers: got {self.num_workers}; expected at least 1")
        for name in ("base_s", "prefill_s_per_token"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}; expected at least 0")
        if not (math.isfinite(self.chars_per_token) and self.chars_per_token > 0):
            raise ValueError(f"chars_per_token: got {self.chars_per_token}; expected more than 0")
        table = dict(self.decode_step_s)
        if 1 not in table or min(table) < 1:
            raise ValueError(
                f"decode_step_s: got rows {sorted(table)}; expected whole numbers from 1"
            )
        if not all(math.isfinite(step_s) and step_s > 0 for step_s in table.values()):
            raise ValueError(f"decode_step_s: got {table}; expected seconds above 0")

    async def start(self, model: LanguageModel | None) -> None:
        """Nothing to get ready."""

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        """Length in characters by `chars_per_token`, rounded up, at least 1."""
        return max(1, math.ceil(len(prompt) / self.chars_per_token))

    def step_s(self, num_rows: int) -> float:
        """A decode step of `num_rows`: linear between measured sizes; beyond the largest one in
        proportion to the rows."""
        sizes = sorted(self.decode_step_s)
        at = bisect.bisect_left(sizes, num_rows)
        if at == len(sizes):
            return self.decode_step_s[sizes[-1]] * num_rows / sizes[-1]
        if sizes[at] == num_rows:
            return self.decode_step_s[num_rows]
        below, above = sizes[at - 1], sizes[at]
        share = (num_rows - below) / (above - below)
        return (1 - share) * self.decode_step_s[below] + share * self.decode_step_s[above]

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Sleep the stated time on the loop's clock. The text is a marker, the same for all."""
        budgets = [request.max_new_tokens for request in batch]
        if min(budgets) < 1:
            raise RequestFailed(f"max_new_tokens is {min(budgets)}; expected at least 1")
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        prompt_tokens = [self.count_tokens(request.prompt) for request in batch]
        padded = len(batch) * max(prompt_tokens)
        # token_s[n]: seconds after the beginning at which every row alive has n + 1 tokens
        token_s = [self.base_s + self.prefill_s_per_token * padded]
        for num_tokens in range(1, max(budgets)):
            alive = sum(budget > num_tokens for budget in budgets)
            token_s.append(token_s[-1] + self.step_s(alive))
        await asyncio.sleep(token_s[-1])
        return [
            Generation(TEXT, tokens, budget, begin_s + token_s[0], begin_s + token_s[budget - 1])
            for tokens, budget in zip(prompt_tokens, budgets, strict=True)
        ]

    async def stop(self) -> None:
        """Nothing to free."""

    def describe(self) -> dict[str, str | int | float]:
        return {
            "decoding": "modeled: time from a table, no text",
            "workers": self.num_workers,
            "largest_measured_batch": max(self.decode_step_s),
        }
