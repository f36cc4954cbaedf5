"""Which method is best, for whom, and how sure that is: the part that only computes.

Each method stands as ratios to the one baseline that all of them were measured against. Two of
them are told apart on an axis only where their 95 % intervals are apart; otherwise they tie, and
are shown to. (That is cautious: of two means whose intervals just touch, the difference is
already clearer than 95 %.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from capibench.errors import ConfigError
from capibench.measure.stats import Estimate
from capibench.quantization.result import ACCURACY, MEMORY, SPEED, QuantizationResult

# One per cent of perplexity is worth ten per cent of speed or of memory.
DEFAULT_BALANCE = {"accuracy": 10.0, "speed": 1.0, "memory": 1.0}


@dataclass(frozen=True, slots=True)
class Axis:
    """One positive ratio to the baseline, and what doubling or halving it is worth."""

    name: str
    better: Literal["lower", "higher"]
    weight: float  # of the natural logarithm of the ratio in the balance; 0: does not count

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight: got {self.weight} for {self.name}; expected 0 or more")

    @property
    def sign(self) -> float:
        return 1.0 if self.better == "higher" else -1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method's values by axis; an estimate without an interval can be told apart from none."""

    name: str
    values: Mapping[str, Estimate | None]


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of one axis and everything that cannot be told apart from it."""

    name: str
    value: float
    ties: tuple[str, ...]  # without `name`, in the order of their values


@dataclass(frozen=True, slots=True)
class Balanced:
    """The highest weighted score, and why."""

    name: str
    score: float  # sum over axes of weight x ln(ratio, turned so that more is better)
    ties: tuple[str, ...]
    scores: Mapping[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """The whole verdict over one set of candidates."""

    axes: tuple[Axis, ...]
    pareto_front: tuple[str, ...]
    best_by_axis: Mapping[str, Best]  # an axis that nobody has a value on is absent
    balanced: Balanced | None  # None where no candidate has a value on every axis
    unranked: Mapping[str, str]  # name: which value it lacks


@dataclass(frozen=True)
class Comparison:
    """All methods on one model, against one baseline, on the same held-out text."""

    original_model_path: str
    results: Mapping[str, QuantizationResult]  # by method, those that were measured
    unavailable: Mapping[str, str]  # method: which optional package is missing
    failed: Mapping[str, str]  # method: what went wrong
    ranking: Ranking

    @property
    def pareto_front(self) -> tuple[str, ...]:
        """Methods that none beats on one axis without losing on another."""
        return self.ranking.pareto_front

    @property
    def best_by_axis(self) -> Mapping[str, Best]:
        """Best accuracy, speed and memory, each with its ties."""
        return self.ranking.best_by_axis

    @property
    def balanced(self) -> Balanced | None:
        """The choice under the manager's weights, with its reason."""
        return self.ranking.balanced

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def axes(balance: Mapping[str, float]) -> tuple[Axis, ...]:
    """The three axes of a quantized model with the weights of their balance.

    Raises:
        ConfigError: other names than accuracy, speed and memory, or no weight above 0.
    """
    if set(balance) != set(DEFAULT_BALANCE):
        raise ConfigError(
            "balance", f"got {sorted(balance)}; expected weights of {', '.join(DEFAULT_BALANCE)}"
        )
    if not all(0 <= w < math.inf for w in balance.values()) or not any(balance.values()):
        raise ConfigError(
            "balance", f"got {dict(balance)}; expected numbers from 0 up, and one above 0"
        )
    return (
        Axis(ACCURACY, "lower", balance["accuracy"]),
        Axis(SPEED, "higher", balance["speed"]),
        Axis(MEMORY, "higher", balance["memory"]),
    )


def candidate(name: str, result: QuantizationResult) -> Candidate:
    """The values of `result` on the three axes."""
    return Candidate(name, {axis: result.estimate(axis) for axis in (ACCURACY, SPEED, MEMORY)})


def rank(candidates: Sequence[Candidate], over: Sequence[Axis]) -> Ranking:
    """Pareto front, best by axis and balanced choice.

    Raises:
        ValueError: a name appears twice, a value is not positive, or no axis has a weight.
    """
    _check(candidates, over)
    unranked: dict[str, str] = {}
    complete = []
    for one in candidates:
        missing = [axis.name for axis in over if one.values.get(axis.name) is None]
        if missing:
            unranked[one.name] = f"not measured: {', '.join(missing)}"
        else:
            complete.append(one)
    best = {axis.name: found for axis in over if (found := _best(candidates, axis)) is not None}
    return Ranking(tuple(over), _front(complete, over), best, _balance(complete, over), unranked)


def _check(candidates: Sequence[Candidate], over: Sequence[Axis]) -> None:
    names = [one.name for one in candidates]
    if len(set(names)) != len(names):
        raise ValueError(f"candidates: got {names}; expected each name once")
    if not any(axis.weight > 0 for axis in over):
        raise ValueError("weight: got 0 on every axis; expected at least one above 0")
    for one in candidates:
        for axis in over:
            value = one.values.get(axis.name)
            if value is not None and not value.value > 0:
                raise ValueError(
                    f"{axis.name}: got {value.value} for {one.name}; expected a ratio above 0"
                )


def _bounds(value: Estimate) -> tuple[float, float]:
    """The interval; without one nothing is known but the value itself."""
    low = -math.inf if value.low is None else value.low
    high = math.inf if value.high is None else value.high
    return min(low, value.value), max(high, value.value)


def surely_better(one: Estimate, other: Estimate, axis: Axis) -> bool:
    """Whether the two intervals are apart, and on the right side."""
    if axis.better == "higher":
        return _bounds(one)[0] > _bounds(other)[1]
    return _bounds(one)[1] < _bounds(other)[0]


def _value(one: Candidate, axis: Axis) -> Estimate:
    value = one.values[axis.name]
    assert value is not None
    return value


def _front(complete: Sequence[Candidate], over: Sequence[Axis]) -> tuple[str, ...]:
    """Those that none beats. One beats another when its value is at least as good on every axis
    and surely better on one: the plain front, plus what only noise keeps off it."""

    def beats(one: Candidate, other: Candidate) -> bool:
        pairs = [(_value(one, axis), _value(other, axis), axis) for axis in over]
        return all(a.value * axis.sign >= b.value * axis.sign for a, b, axis in pairs) and any(
            surely_better(a, b, axis) for a, b, axis in pairs
        )

    return tuple(one.name for one in complete if not any(beats(other, one) for other in complete))


def _best(candidates: Sequence[Candidate], axis: Axis) -> Best | None:
    known = [one for one in candidates if one.values.get(axis.name) is not None]
    if not known:
        return None
    known.sort(key=lambda one: -axis.sign * _value(one, axis).value)
    first = _value(known[0], axis)
    ties = tuple(one.name for one in known[1:] if not surely_better(first, _value(one, axis), axis))
    return Best(known[0].name, first.value, ties)


def _balance(complete: Sequence[Candidate], over: Sequence[Axis]) -> Balanced | None:
    """Weighted sum of logarithms: what a candidate scores does not depend on who else is there,
    as it would after scaling each axis to its best and worst."""
    if not complete:
        return None
    scores = {one.name: _score(one, over) for one in complete}
    order = sorted(complete, key=lambda one: -scores[one.name].value)
    total = Axis("score", "higher", 1.0)
    first = scores[order[0].name]
    ties = tuple(one.name for one in order[1:] if not surely_better(first, scores[one.name], total))
    return Balanced(
        name=order[0].name,
        score=first.value,
        ties=ties,
        scores={one.name: scores[one.name].value for one in order},
        reason=_reason(order[0], ties, over),
    )


def _score(one: Candidate, over: Sequence[Axis]) -> Estimate:
    """Value and interval; the axes are measured apart, so their errors add up in squares."""
    value = 0.0
    below = above = 0.0  # squares
    for axis in over:
        if axis.weight == 0:
            continue
        estimate = _value(one, axis)
        factor = axis.sign * axis.weight
        at = factor * math.log(estimate.value)
        ends = sorted(factor * _log(bound) for bound in _bounds(estimate))
        value += at
        below += (at - ends[0]) ** 2
        above += (ends[1] - at) ** 2
    return Estimate(value, value - math.sqrt(below), value + math.sqrt(above))


def _log(bound: float) -> float:
    return math.log(bound) if bound > 0 else -math.inf


def _reason(one: Candidate, ties: Sequence[str], over: Sequence[Axis]) -> str:
    parts = []
    for axis in over:
        value = _value(one, axis)
        known = value.low is not None and value.high is not None
        interval = f" ({value.low:.4g} to {value.high:.4g})" if known else " (no interval)"
        parts.append(f"{axis.name} {value.value:.4g}{interval} at weight {axis.weight:g}")
    tied = f"; not told apart from {', '.join(ties)}" if ties else ""
    return f"{one.name} has the highest weighted score: {', '.join(parts)}{tied}"
