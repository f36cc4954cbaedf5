"""The seam of generation: a batch of prompts in, texts with token times out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from capibench.model.language_model import LanguageModel
    from capibench.model.recipe import ModelFacts, ModelRecipe


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt and the exact number of tokens to generate (end-of-sequence is ignored, so that
    every combination does the same work; the answer is cut at the end tag afterwards)."""

    prompt: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What came out, with the loop time at which the first and the last token existed."""

    text: str
    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    last_token_s: float


class Engine(Protocol):
    """Answers in request order; the same tokens batched and alone (fp32)."""

    modeled: bool  # True: times come from a table, not from work (class attribute)
    needs_model: bool  # True: `start` must be given a loaded model (class attribute)
    # True: `generate` may be called for a worker that runs, and what it brings joins at the next
    # iteration; the answers of one call come together (class attribute)
    joins_running: bool

    @property
    def num_workers(self) -> int:
        """How many batches run at the same time."""

    async def start(self, model: LanguageModel | None) -> None:
        """Get ready; called once, before the warm-up."""

    def count_tokens(self, prompt: str, max_new_tokens: int = 1) -> int:
        """Prompt length in the engine's tokens (batch composition needs it).

        Raises RequestFailed when the model has no room for the prompt and `max_new_tokens`: said
        before the request is queued, it cannot fail the batch that it would have shared.
        """

    async def generate(self, batch: Sequence[GenerationRequest], worker: int) -> list[Generation]:
        """Generate for all of `batch` on `worker`; asks the running loop for the time."""

    async def stop(self) -> None:
        """Free what `start` took."""

    def describe(self) -> dict[str, str | int | float]:
        """Kernels, precision and threads really used; recorded with the run."""


@runtime_checkable
class LoadsModel(Protocol):
    """What an engine has besides, when processes of its own load the model: the run's process
    does not load it then, and `start` is given None."""

    def will_load(self, recipe: ModelRecipe) -> None:
        """How to load the model; said once, before `start`."""

    def model_facts(self) -> ModelFacts:
        """What was loaded, as the processes report it; known after `start`."""
