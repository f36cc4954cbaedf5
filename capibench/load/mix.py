"""What is asked, apart from when: questions, classes, priorities, token budgets, deadlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from capibench.corpus.corpus import Question
from capibench.errors import ConfigError
from capibench.load.popularity import draw, zipf_shares
from capibench.load.streams import DrawStreams, LoadStreams
from capibench.records import Phase, Request, RequestPriority

PRIORITIES = {priority.name.lower(): priority for priority in RequestPriority}


@dataclass
class RequestMix:
    """The part that all loads share; each adds when its requests are sent."""

    num_requests: int
    warmup_requests: int
    questions: Literal["heldout", "train", "all"]
    zipf_exponent: float
    class_mix: Mapping[str, float] | None
    max_new_tokens: Mapping[str, int]
    priority_mix: Mapping[str, float]
    deadline_ms: float | Mapping[str, float | None] | None

    def __post_init__(self) -> None:
        if self.num_requests < 1:
            raise ValueError(f"num_requests: got {self.num_requests}; expected at least 1")
        if self.warmup_requests < 0:
            raise ValueError(f"warmup_requests: got {self.warmup_requests}; expected at least 0")
        if not 0 <= self.zipf_exponent < float("inf"):
            raise ValueError(f"zipf_exponent: got {self.zipf_exponent}; expected at least 0")
        if self.class_mix is not None:
            _check_shares("class_mix", self.class_mix)
        for name, tokens in self.max_new_tokens.items():
            if tokens < 1:
                raise ValueError(f"max_new_tokens.{name}: got {tokens}; expected at least 1")
        for name in self.priority_mix:
            if name not in PRIORITIES:
                known = ", ".join(PRIORITIES)
                raise ValueError(f"priority_mix: got {name!r}; expected some of {known}")
        _check_shares("priority_mix", self.priority_mix)
        for deadline_ms in self._deadlines_ms():
            if deadline_ms is not None and not deadline_ms > 0:
                raise ValueError(f"deadline_ms: got {deadline_ms}; expected above 0, or null")

    def draw_questions(
        self, questions: Sequence[Question], streams: LoadStreams
    ) -> tuple[list[Question], list[Question]]:
        """The questions of the warm-up and of the measured requests, in order."""
        lines = self._ranked(questions, streams.ranks)
        shares = {name: zipf_shares(len(line), self.zipf_exponent) for name, line in lines.items()}

        def drawn(num_draws: int, phase: DrawStreams) -> list[Question]:
            names = list(lines)
            weights = [1.0] if self.class_mix is None else [self.class_mix[name] for name in names]
            classes = draw(weights, num_draws, phase.classes)
            uniform = phase.popularity.random(num_draws)
            chosen: list[Question | None] = [None] * num_draws
            for number, name in enumerate(names):
                places = np.flatnonzero(classes == number)
                cumulative = np.cumsum(shares[name])
                ranks = np.searchsorted(cumulative / cumulative[-1], uniform[places], side="right")
                for place, rank in zip(places, ranks, strict=True):
                    chosen[place] = lines[name][rank]
            return [question for question in chosen if question is not None]

        return (
            drawn(self.warmup_requests, streams.warmup),
            drawn(self.num_requests, streams.measure),
        )

    def draw_priorities(self, num_draws: int, streams: DrawStreams) -> list[int]:
        """A priority for each of `num_draws` requests."""
        names = list(self.priority_mix)
        drawn = draw(list(self.priority_mix.values()), num_draws, streams.priorities)
        return [int(PRIORITIES[names[index]]) for index in drawn]

    def requests(
        self,
        questions: Sequence[Question],
        intended_s: Sequence[float | None],
        phase: Phase,
        first_id: int,
        streams: DrawStreams,
    ) -> tuple[Request, ...]:
        """One request per drawn question, sent at `intended_s`."""
        priorities = self.draw_priorities(len(questions), streams)
        return tuple(
            Request(
                id=first_id + i,
                question_id=question.id,
                query=question.text,
                query_class=question.query_class,
                priority=priorities[i],
                max_new_tokens=self.tokens_of(question.query_class),
                intended_s=intended_s[i],
                deadline_s=self.deadline_of(question.query_class),
                phase=phase,
            )
            for i, question in enumerate(questions)
        )

    def tokens_of(self, query_class: str) -> int:
        """The token budget of a class."""
        if query_class not in self.max_new_tokens:
            raise ConfigError(
                f"load.max_new_tokens.{query_class}",
                "missing; a question of this class is asked, so expected its token budget",
            )
        return self.max_new_tokens[query_class]

    def deadline_of(self, query_class: str) -> float | None:
        """Seconds after the intended time, or None."""
        if isinstance(self.deadline_ms, Mapping):
            deadline_ms = self.deadline_ms.get(query_class)
        else:
            deadline_ms = self.deadline_ms
        return None if deadline_ms is None else deadline_ms / 1000

    def describe(self) -> dict[str, str | int | float]:
        """The mix in a few words."""
        return {
            "num_requests": self.num_requests,
            "warmup_requests": self.warmup_requests,
            "questions": self.questions,
            "zipf_exponent": self.zipf_exponent,
        }

    def _deadlines_ms(self) -> list[float | None]:
        if isinstance(self.deadline_ms, Mapping):
            return list(self.deadline_ms.values())
        return [self.deadline_ms]

    def _ranked(
        self, questions: Sequence[Question], ranks: np.random.Generator
    ) -> dict[str, list[Question]]:
        """Questions in their drawn order of popularity: one line, or one per class of the mix."""
        order = [questions[place] for place in ranks.permutation(len(questions))]
        if self.class_mix is None:
            return {"all": order}
        lines = {
            name: [question for question in order if question.query_class == name]
            for name in self.class_mix
        }
        for name, line in lines.items():
            if not line and self.class_mix[name] > 0:
                present = ", ".join(sorted({question.query_class for question in questions}))
                raise ConfigError(
                    f"load.class_mix.{name}",
                    f"got {self.class_mix[name]}, but no question is of this class; "
                    f"expected some of {present}",
                )
        return {name: line for name, line in lines.items() if line}


def _check_shares(name: str, shares: Mapping[str, float]) -> None:
    for key, share in shares.items():
        if not 0 <= share < float("inf"):
            raise ValueError(f"{name}.{key}: got {share}; expected at least 0")
    if not sum(shares.values()) > 0:
        raise ValueError(f"{name}: got {dict(shares)}; expected a share above 0")
