"""The four promises of quantization against what was measured, condition by condition. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Promise:
    """A range that is promised. It is kept from the weaker end on: more is no breach."""

    claim: str
    bound: float
    kept: Literal["at least", "at most"]
    percent: bool


COMPRESSION = Promise("2.5-4x compression", 2.5, "at least", False)
MEMORY = Promise("70-75 % less memory", 0.70, "at least", True)
SPEED = Promise("1.8-2.5x inference speed-up", 1.8, "at least", False)
ACCURACY = Promise("under 2 % accuracy loss", 0.02, "at most", True)


# What "memory" may mean, from a footprint.
MEMORY_COUNTS: dict[str, Callable[[Json], int | None]] = {
    "parameters and buffers": lambda f: f["model_bytes"],
    "resident memory that the model adds": lambda f: f["resident_bytes"] - f["imported_bytes"],
    "resident memory of the process": lambda f: f["resident_bytes"],
    "peak while loading": lambda f: f["load_peak_bytes"],
    "peak while decoding": lambda f: f["decode_peak_bytes"],
    "peak of the GPU while decoding": lambda f: f["gpu_peak_bytes"],
}


@dataclass(frozen=True)
class Verdict:
    """One promise under one condition."""

    model: str
    variant: str
    promise: str
    condition: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str  # holds, does not hold, undecided (the interval spans the bound), not measured
    note: str


def judge(promise: Promise, value: float | None, low: float | None, high: float | None) -> str:
    """`holds` or `does not hold` only where the whole interval says so (a value without an
    interval is an exact count)."""
    if value is None:
        return "not measured"
    ends = [value if end is None else end for end in (low, high)]
    if promise.kept == "at least":
        kept = [end >= promise.bound for end in ends]
    else:
        kept = [end < promise.bound for end in ends]
    return "holds" if all(kept) else "undecided" if any(kept) else "does not hold"


def verdicts(model: str, entries: Json, rows: list[dict[str, Any]]) -> list[Verdict]:
    """All promises for every variant of `model`.

    Args:
        entries: per variant name, what was prepared and its footprint, as in results.json.
        rows: of the speed studies of this model.
    """
    baselines = [name for name, entry in entries.items() if entry["baseline"]]
    found = []
    for name, entry in entries.items():
        if entry["baseline"]:
            continue

        def add(
            promise: Promise,
            condition: str,
            value: float | None,
            low: float | None = None,
            high: float | None = None,
            note: str = "",
            variant: str = name,
        ) -> None:
            verdict = judge(promise, value, low, high)
            found.append(
                Verdict(model, variant, promise.claim, condition, value, low, high, verdict, note)
            )

        failed = entry["failed"] or ""
        for against in baselines:
            base = entries[against]
            add(
                COMPRESSION,
                f"weights on disk, against {against}",
                _ratio(base["disk_weight_bytes"], entry["disk_weight_bytes"]),
                note=failed,
            )
            for what, count in MEMORY_COUNTS.items():
                whole = _count(base, count)
                if whole is None:
                    continue
                ratio = _ratio(_count(entry, count), whole)
                add(
                    MEMORY,
                    f"{what}, against {against}",
                    None if ratio is None else 1.0 - ratio,
                    note=failed,
                )
            _speed(add, name, against, rows, failed)
        _accuracy(add, entry, failed)
    return found


def _speed(add: Any, name: str, against: str, rows: list[dict[str, Any]], failed: str) -> None:
    conditions = dict.fromkeys(
        (row["phase"], row["batch_size"], row["prompt_tokens"], row["num_threads"]) for row in rows
    )
    for phase, batch_size, prompt_tokens, threads in conditions:
        row = next(
            (
                row
                for row in rows
                if row["model"] == name
                and (row["phase"], row["batch_size"], row["prompt_tokens"], row["num_threads"])
                == (phase, batch_size, prompt_tokens, threads)
            ),
            {},
        )
        ends = [row.get(f"speedup.{against}.{end}") for end in ("value", "low", "high")]
        note = failed
        if ends[0] is not None and ends[1] is None:
            note = "too few rounds for an interval"
        elif row.get(f"speedup.{against}.tie"):
            note = "tie with the baseline"
        add(
            SPEED,
            f"{phase}, batch {batch_size}, {prompt_tokens} prompt tokens, "
            f"{threads} thread{'s' if threads > 1 else ''}, against {against}",
            *ends,
            note=note,
        )


def _accuracy(add: Any, entry: Json, failed: str) -> None:
    """Perplexity's increase, tokens chosen differently, and whatever task there is, on held-out
    text against the unquantized model in the same precision."""
    quality = entry["quality"] or {}
    reason = failed or entry["no_quality"] or ""
    ratio = quality.get("perplexity_ratio")
    add(ACCURACY, "increase of perplexity", *(_each(ratio, lambda x: x - 1.0)), note=reason)
    few = quality.get("few_rows.perplexity_ratio")
    if few is not None:
        add(ACCURACY, "increase of perplexity, few rows at once", *(_each(few, lambda x: x - 1.0)))
    agreement = quality.get("top1_agreement")
    add(
        ACCURACY,
        "most probable tokens that differ",
        *_turned(_each(agreement, lambda x: 1.0 - x)),
        note=reason,
    )
    add(
        ACCURACY,
        "accuracy lost in the cloze task",
        *_each(quality.get("cloze_loss"), lambda x: x),
        note=reason,
    )


def _each(figure: Json | None, turn: Any) -> tuple[float | None, float | None, float | None]:
    if figure is None:
        return None, None, None
    value, low, high = (
        None if figure[end] is None else turn(figure[end]) for end in ("value", "low", "high")
    )
    return value, low, high


def _turned(
    figure: tuple[float | None, float | None, float | None],
) -> tuple[float | None, float | None, float | None]:
    value, low, high = figure
    return value, high, low


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _count(entry: Json, count: Callable[[Json], int | None]) -> int | None:
    return None if entry["footprint"] is None else count(entry["footprint"])
