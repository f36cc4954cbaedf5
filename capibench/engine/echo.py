"""Answers at once with the prompt's own words: what is left to measure is the harness itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from capibench.engine.engine import Generation, GenerationRequest
from capibench.model.language_model import LanguageModel


@dataclass
class Echo:
    """No model, no waiting. Tokens are words. Its time is not a model's, so it counts as modeled
    and is never ranked with measured engines."""

    modeled: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    joins_running: ClassVar[bool] = True  # nothing ever runs

    @property
    def num_workers(self) -> int:
        return 1

    async def start(self, model: LanguageModel | None) -> None:
        """Nothing to get ready."""

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        return len(prompt.split())

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """The first `max_new_tokens` words of every prompt (fewer when it has fewer)."""
        now_s = asyncio.get_running_loop().time()
        answers = []
        for request in batch:
            words = request.prompt.split()
            said = words[: request.max_new_tokens]
            answers.append(Generation(" ".join(said), len(words), len(said), now_s, now_s))
        return answers

    async def stop(self) -> None:
        """Nothing to free."""

    def describe(self) -> dict[str, str | int | float]:
        return {"decoding": "echo: first words of the prompt, no model"}
