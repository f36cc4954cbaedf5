"""What the ladder measures together: which variants, which of them fit into memory beside their
baselines, and which shapes would take too long. Pure: it decides, `ladder.py` acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capibench.quantization.footprint import Footprint

UNQUANTIZED = "none"
BASELINE_PRECISIONS = ("bf16", "fp32")
PROBE_TOKENS = 32  # of the single prompt by which a footprint process tells how slow a variant is


@dataclass(frozen=True)
class Variant:
    """A method on a model loaded in a precision."""

    method: str  # a choice of conf/quantization
    precision: str

    @property
    def name(self) -> str:
        return self.method if self.precision == "auto" else f"{self.method}@{self.precision}"

    @property
    def is_baseline(self) -> bool:
        return self.method == UNQUANTIZED

    def overrides(self, model: str) -> list[str]:
        return [
            f"model={model}",
            f"quantization={self.method}",
            f"model.precision={self.precision}",
        ]


def variants(methods: Sequence[str], precisions: Sequence[str], native: str) -> list[Variant]:
    """Both baselines, that of the machine's own precision first, then every method in every
    precision."""
    baselines = sorted(BASELINE_PRECISIONS, key=lambda precision: precision != native)
    return [
        *(Variant(UNQUANTIZED, precision) for precision in baselines),
        *(Variant(m, p) for m in methods if m != UNQUANTIZED for p in precisions),
    ]


@dataclass(frozen=True)
class Grouping:
    groups: list[list[str]]  # names; baselines first
    too_large: dict[str, str]  # name: why it is in no group


def group(
    footprints: Mapping[str, Footprint], baselines: Sequence[str], budget_bytes: int
) -> Grouping:
    """As few groups as a simple first fit finds, each with as many baselines as fit, the first
    baseline always.

    A group needs what all its members hold, and on top the most that one of them needs for a
    while, in loading (when the unquantized weights are there too) or in decoding.
    """

    def needs(names: Sequence[str]) -> int:
        held = [footprints[n].resident_bytes - footprints[n].imported_bytes for n in names]
        passing = [
            max(footprints[n].load_peak_bytes, footprints[n].decode_peak_bytes)
            - footprints[n].resident_bytes
            for n in names
        ]
        return sum(held) + max(passing)

    def fits(names: Sequence[str]) -> bool:
        return needs(names) <= budget_bytes

    first, *others = baselines
    groups: list[list[str]] = []
    too_large: dict[str, str] = {}
    for name in [n for n in footprints if n not in baselines]:
        for members in groups:
            if fits([*members, name]):
                members.append(name)
                break
        else:
            beside = [[first, *others], [first]]
            alone = [[*chosen, name] for chosen in beside if fits([*chosen, name])]
            if alone:
                groups.append(alone[0])
            else:
                too_large[name] = (
                    f"needs {needs([first, name]) / 1e9:.1f} GB beside {first}; "
                    f"{budget_bytes / 1e9:.1f} GB are allowed (--memory-gb)"
                )
    if not groups:
        groups = [[n for n in baselines if fits([first, n])] or [first]]
    return Grouping(groups, too_large)


def predicted_s(probe: Footprint, batch_size: int, prompt_tokens: int, new_tokens: int) -> float:
    """Seconds of one prefill and its decode steps, at the speed of the probe; on the long side,
    since many rows are multiplied faster per row than few."""
    per_row_s = probe.prefill_s / PROBE_TOKENS
    step_s = max(probe.step_s, per_row_s * batch_size)
    return per_row_s * batch_size * prompt_tokens + step_s * new_tokens


@dataclass(frozen=True)
class Shape:
    batch_sizes: list[int]
    prompt_tokens: int
    new_tokens: int
    members: list[str]


def shapes(
    wanted: Sequence[tuple[int, int, int]],
    members: Sequence[str],
    probes: Mapping[str, Footprint],
    max_call_s: float,
) -> tuple[list[Shape], list[dict[str, object]]]:
    """`wanted` (batch size, prompt tokens, new tokens), each without the members that are too slow
    for it; batch sizes with the same members stay one study. Second: what is left out and why."""
    planned: list[Shape] = []
    skipped: list[dict[str, object]] = []
    for batch_size, prompt_tokens, new_tokens in wanted:
        chosen = []
        for name in members:
            seconds = predicted_s(probes[name], batch_size, prompt_tokens, new_tokens)
            if seconds <= max_call_s:
                chosen.append(name)
            else:
                skipped.append(
                    {
                        "variant": name,
                        "batch_size": batch_size,
                        "prompt_tokens": prompt_tokens,
                        "reason": f"one call would take some {seconds:,.0f} s; "
                        f"{max_call_s:,.0f} s are allowed (--max-call-s)",
                    }
                )
        if members[0] not in chosen:
            skipped += [
                {
                    "variant": name,
                    "batch_size": batch_size,
                    "prompt_tokens": prompt_tokens,
                    "reason": f"its baseline {members[0]} is too slow here",
                }
                for name in chosen
            ]
            continue
        last = planned[-1] if planned else None
        if last is not None and (last.prompt_tokens, last.new_tokens, last.members) == (
            prompt_tokens,
            new_tokens,
            chosen,
        ):
            last.batch_sizes.append(batch_size)
        else:
            planned.append(Shape([batch_size], prompt_tokens, new_tokens, chosen))
    return planned, skipped
