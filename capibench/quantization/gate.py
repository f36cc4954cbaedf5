"""Is it good enough to ship? Targets against what was measured, and nothing assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capibench.measure.stats import Estimate
from capibench.quantization.result import ACCURACY, SPEED, QuantizationResult


@dataclass(frozen=True, slots=True)
class Targets:
    """What a quantized model must reach; None: no such target.

    The promises of the field are `Targets(max_accuracy_loss=0.02, min_speedup_factor=1.8,
    min_memory_reduction=0.7)`.
    """

    max_accuracy_loss: float | None  # relative increase of perplexity: 0.02 is 2 %
    min_speedup_factor: float | None  # decoding at batch 1, original / quantized seconds
    min_memory_reduction: float | None  # share of the weights' resident bytes that is saved

    def __post_init__(self) -> None:
        if self.max_accuracy_loss is not None and not self.max_accuracy_loss >= 0:
            raise ValueError(f"max_accuracy_loss: got {self.max_accuracy_loss}; expected 0 or more")
        if self.min_speedup_factor is not None and not self.min_speedup_factor > 0:
            raise ValueError(f"min_speedup_factor: got {self.min_speedup_factor}; expected above 0")
        if self.min_memory_reduction is not None and not self.min_memory_reduction < 1:
            raise ValueError(
                f"min_memory_reduction: got {self.min_memory_reduction}; expected below 1"
            )


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target: what was asked, what was measured, and whether that is enough."""

    target: str  # the name of the field of `Targets`
    bound: float
    measured: float | None
    low: float | None  # 95 % interval of `measured`
    high: float | None
    passed: bool
    certain: bool  # the whole interval lies on the side of `passed`
    reason: str


@dataclass(frozen=True, slots=True)
class Gate:
    """Passed when every target is; with no targets there is nothing to pass, and it is not."""

    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    @property
    def by_target(self) -> Mapping[str, Verdict]:
        return {verdict.target: verdict for verdict in self.verdicts}


def check_targets(result: QuantizationResult, targets: Targets) -> Gate:
    """`result` against each target that is set."""
    ratio = result.estimate(ACCURACY)
    loss = None if result.accuracy_loss is None else _less_one(result.accuracy_loss, ratio)
    speed = None if result.speedup_factor is None else result.estimate(SPEED)
    if speed is None and result.speedup_factor is not None:
        speed = Estimate(result.speedup_factor)
    saved = result.memory_reduction
    wanted = (
        ("max_accuracy_loss", targets.max_accuracy_loss, loss),
        ("min_speedup_factor", targets.min_speedup_factor, speed),
        ("min_memory_reduction", targets.min_memory_reduction, Estimate(saved, saved, saved)),
    )
    return Gate(
        tuple(_verdict(name, bound, found) for name, bound, found in wanted if bound is not None)
    )


def _less_one(value: float, ratio: Estimate | None) -> Estimate:
    """A ratio's interval as the interval of the loss."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return Estimate(value)
    return Estimate(value, ratio.low - 1, ratio.high - 1, ratio.n)


def _verdict(name: str, bound: float, found: Estimate | None) -> Verdict:
    at_most = name.startswith("max_")
    sign = "at most" if at_most else "at least"
    if found is None:
        return Verdict(
            name, bound, None, None, None, False, False, f"not measured; wanted {sign} {bound:g}"
        )

    def enough(value: float) -> bool:
        return value <= bound if at_most else value >= bound

    passed = enough(found.value)
    certain = (
        found.low is not None
        and found.high is not None
        and enough(found.low) == enough(found.high) == passed
    )
    reason = f"measured {found.value:.4g}, wanted {sign} {bound:g}"
    if not certain:
        no_interval = found.low is None or found.high is None
        reason += "; without an interval" if no_interval else "; the interval holds both answers"
    return Verdict(name, bound, found.value, found.low, found.high, passed, certain, reason)
