"""What batching gains on the real engine, by prompt length, precision and quantization.

    OMP_NUM_THREADS=1 python experiments/004-batching/gains.py --out reports/batching-gains
    OMP_NUM_THREADS=1 python experiments/004-batching/gains.py --out quick --models nano \\
        --batch-sizes 1 4 --prompt-tokens 16 --new-tokens 4 --rounds 3     # a look, seconds

All variants of a model (fp32, bf16, and the quantizations of the machine's own precision) run side
by side in interleaved rounds, every batch size in every round (`measure_speed`), so one measurement
answers both questions:

* gain and latency: rate of a static batch over that of batch 1 of the same variant, and the time
  of the whole batch over the time of a single request: what throughput costs in latency.
* interaction: gain of quantization and batch together over the product of the gains that each has
  alone, all against fp32 at batch 1. 1: they multiply. Below 1: what one gains, the other loses.

Ratios are formed within a round; the figure is their geometric mean with a 95 % interval over
rounds. An interval that contains 1 is a tie. Every row has `--new-tokens` tokens. Writes rows.csv,
table.md and the figures anew after every shape. Nothing else should run.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import Any

import torch
from gain_figures import write_gain_figures
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from summary import Interval, interval

from capibench.artifacts import ArtifactStore, home
from capibench.config import conf_dir
from capibench.measure import noise
from capibench.model.language_model import LanguageModel
from capibench.prepare import Preparation
from capibench.quantization.speed import SpeedTable, measure_speed
from capibench.stack import build_choices

BASELINE = "fp32"
UNQUANTIZED = ("fp32", "bf16")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    known = sorted(path.stem for path in (conf_dir() / "quantization").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["nano", "llama_60m_shape"])
    parser.add_argument(
        "--quantizations",
        nargs="*",
        choices=known,
        metavar="METHOD",
        default=["int4", "dynamic_int8"],
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[16, 128, 448])
    parser.add_argument("--new-tokens", type=int, default=32, help="of every row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for the configuration")
    chosen = parser.parse_intermixed_args(arguments)
    if 1 not in chosen.batch_sizes:
        parser.error("--batch-sizes: expected 1 among them; gains are against it")
    if chosen.new_tokens < 2:
        parser.error("--new-tokens: expected at least 2, so that there is a decode step")
    return chosen


def main() -> None:
    chosen = parse()
    torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    for name in chosen.models:
        variants = {
            variant: load(name, variant, chosen.overrides)
            for variant in (*UNQUANTIZED, *chosen.quantizations)
        }
        for prompt_tokens in chosen.prompt_tokens:
            before_s = noise.calibrate()
            table = measure_speed(
                variants,
                batch_sizes=chosen.batch_sizes,
                prompt_tokens=prompt_tokens,
                new_tokens=chosen.new_tokens - 1,  # decode steps; the prefill gives the first
                rounds=chosen.rounds,
                seed=chosen.seed,
                baseline=BASELINE,
                progress=lambda text, at=f"{name}, {prompt_tokens} tokens": console.print(
                    f"{at}: {text}", style="dim"
                ),
            )
            drift = noise.drift(before_s, noise.calibrate())
            rows += [{"llm": name, **row, "drift": drift} for row in rows_of(table)]
            write(chosen.out, rows)
    sys.stdout.write(f"{chosen.out / 'table.md'}\n")


def load(model: str, variant: str, overrides: list[str]) -> LanguageModel:
    """fp32 or bf16 as they are, or a quantization of the machine's own precision."""
    quantization, precision = ("none", variant) if variant in UNQUANTIZED else (variant, "auto")
    chosen = [
        f"model={model}",
        f"quantization={quantization}",
        f"model.precision={precision}",
        *overrides,
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", chosen), resolve=True)
    choices = build_choices(config)
    loaded = choices.model.load()
    if quantization == "none":
        return loaded
    artifact = Preparation(choices, config, ArtifactStore(home() / "artifacts")).quantized_artifact
    quantized, _ = choices.quantization.load(loaded, artifact.path)
    return quantized


def rows_of(table: SpeedTable) -> list[dict[str, Any]]:
    """One row per variant and batch size, ratios with their intervals."""

    def seconds(model: str, size: int) -> list[float]:  # [rounds]: prefill and all decode steps
        timing = table.timing(model, size)
        return [a + b for a, b in zip(timing.prefill_s, timing.decode_s, strict=True)]

    def ratio(*factors: list[float]) -> Interval:
        """Geometric mean over rounds of first · third ... / second · fourth ..."""
        signs = [(-1) ** place for place in range(len(factors))]
        logs = [
            sum(sign * math.log(value) for sign, value in zip(signs, values, strict=True))
            for values in zip(*factors, strict=True)
        ]
        found = interval(logs)
        ends = (None if end is None else math.exp(end) for end in (found.low, found.high))
        return Interval(math.exp(found.mean), *ends)

    base = seconds(BASELINE, 1)
    rows = []
    for model in table.models:
        for size in table.batch_sizes:
            mine, alone = seconds(model, size), seconds(model, 1)
            sizes = [float(size)] * len(mine)
            ones = [1.0] * len(mine)
            timing = table.timing(model, size)
            rows.append(
                {
                    "variant": model,
                    "batch_size": size,
                    "prompt_tokens": timing.prompt_tokens,
                    "new_tokens": timing.new_tokens + 1,
                    "threads": table.num_threads,
                    "rounds": table.rounds,
                    "batch_s": ratio(mine, ones).mean,
                    **flat("gain", ratio(sizes, ones, alone, mine)),
                    **flat("latency", ratio(mine, alone)),
                    **flat("both", ratio(sizes, ones, base, mine)),
                    **flat("variant_alone", ratio(base, alone)),
                    # (sizes · base / mine) / (base / alone) / (sizes · base / baseline's)
                    **flat("interaction", ratio(alone, mine, seconds(BASELINE, size), base)),
                }
            )
    return rows


def flat(name: str, found: Interval) -> dict[str, float | None]:
    return {name: found.mean, f"{name}.low": found.low, f"{name}.high": found.high}


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    with (out / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    heads = [
        "model",
        "prompt",
        "variant",
        "batch",
        "batch (ms)",
        "gain over batch 1",
        "latency multiple",
        "faster than fp32 alone",
        "both together",
        "interaction",
    ]
    lines = [
        [
            row["llm"],
            str(row["prompt_tokens"]),
            row["variant"],
            str(row["batch_size"]),
            f"{1000 * row['batch_s']:.4g}",
            *(
                cell(row, name)
                for name in ("gain", "latency", "variant_alone", "both", "interaction")
            ),
        ]
        for row in rows
    ]
    worst = max(abs(row["drift"]) for row in rows)
    text = "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines))
    note = (
        f"{rows[0]['threads']} thread(s), {rows[0]['rounds']} rounds, {rows[0]['new_tokens']} new "
        f"tokens; ≈: tie with 1. Worst drift of the calibration kernel: {worst:.0%}"
        f"{' ⚠ over 10 %' if worst > noise.MAX_DRIFT else ''}."
    )
    (out / "table.md").write_text(f"{note}\n\n{text}\n", encoding="utf-8")
    write_gain_figures(rows, out)


def cell(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row[f"{name}.low"], row[f"{name}.high"]
    if low is None or high is None:
        return f"{value:.2f}"
    if low == high:  # of something against itself
        return f"{value:.2f}"
    tie = "≈ " if low <= 1.0 <= high else ""
    return f"{tie}{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
