"""The seam of load: before a run starts, every request of it is planned.

A load is pure: the same questions and the same streams give the same plan, for every combination.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Literal, Protocol

from capibench.corpus.corpus import Question
from capibench.load.streams import LoadStreams
from capibench.records import Request


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of users, each with at most one request under way."""

    num_users: int
    think_s: tuple[float, ...]  # one per planned request: the pause before its user sends it


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be asked, in order; in an open loop also when."""

    warmup: tuple[Request, ...]
    measured: tuple[Request, ...]
    window_begin_s: float  # open loop: where the warm-up's schedule ends, in seconds from the start
    closed_loop: ClosedLoop | None  # None: open loop
    facts: Mapping[str, str | int | float]  # about the source, recorded with the run

    @property
    def requests(self) -> tuple[Request, ...]:
        """Warm-up, then measured."""
        return self.warmup + self.measured

    @property
    def content_hash(self) -> str:
        """Names the plan: two runs did the same work exactly when their plans' hashes agree."""
        digest = hashlib.blake2b(digest_size=16)
        for request in self.requests:
            digest.update(json.dumps(astuple(request), ensure_ascii=True).encode())
        if self.closed_loop is not None:
            digest.update(json.dumps(astuple(self.closed_loop)).encode())
        return digest.hexdigest()


class Load(Protocol):
    """Open: requests come when they come. Closed: a user asks again when answered."""

    mode: Literal["open", "closed"]  # class attribute
    questions: Literal["heldout", "train", "all"]  # the split of the corpus that is asked

    def plan(self, questions: Sequence[Question], streams: LoadStreams) -> Plan:
        """Plan a run over `questions`, which are those of the split that it names.

        Raises:
            ConfigError: the configured classes do not fit the questions.
            DataError: a replayed file is malformed.
        """

    def describe(self) -> dict[str, str | int | float]:
        """The load in a few words; recorded with the run."""
