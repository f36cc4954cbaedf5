"""Whether the choice of kernel by number of rows is the right one: one quantized model, its layers
multiplied by the packed kernel, by unpacked tiles, and as the method chooses.

    python experiments/003-quantization-ladder/rows.py --threads 1 --out rows-1.csv

A prompt of n tokens is n rows of every layer. The three share every round, in an order drawn anew.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from capibench.artifacts import ArtifactStore, home
from capibench.config import conf_dir
from capibench.measure import noise
from capibench.prepare import Preparation
from capibench.quantization.speed import SpeedTable, measure_speed
from capibench.stack import Choices, build_choices

ALWAYS = 1 << 30
PATHS = {"packed": ALWAYS, "tiles": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", default="llama_1b_shape")
    parser.add_argument("--method", default="int4", help="a weight-only choice of quantization")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 128, 512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a CSV file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    models = {}
    for name, max_rows in {"chosen": None, **PATHS}.items():
        choices, config = _choices(arguments.model, arguments.method, max_rows)
        preparation = Preparation(choices, config, ArtifactStore(home() / "artifacts"))
        artifact = preparation.quantized_artifact
        models[name], _ = choices.quantization.load(choices.model.load(), artifact.path)
        print(f"{name}: loaded", file=sys.stderr)

    found: list[dict[str, Any]] = []
    for rows in arguments.rows:
        before_s = noise.calibrate()
        table = measure_speed(
            models,
            batch_sizes=[1],
            prompt_tokens=rows,
            new_tokens=1,
            rounds=arguments.rounds,
            seed=arguments.seed,
            baseline="chosen",
            progress=lambda text, rows=rows: print(f"{rows} rows: {text}", file=sys.stderr),
        )
        drift = noise.drift(before_s, noise.calibrate())
        found.append({"num_threads": arguments.threads, **_row(rows, table), "drift": drift})
        _write(arguments.out, found)
    _show(found)


def _choices(model: str, method: str, max_rows: int | None) -> tuple[Choices, dict[str, Any]]:
    overrides = [f"model={model}", f"quantization={method}"]
    if max_rows is not None:
        overrides.append(f"quantization.packed_max_rows={max_rows}")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides), resolve=True)
    assert isinstance(config, dict)
    named = {str(key): value for key, value in config.items()}
    return build_choices(named), named


def _row(rows: int, table: SpeedTable) -> dict[str, Any]:
    """Milliseconds of the whole model, and the chosen path's time over the better path's."""
    ms = {name: 1000 * table.speed(name, 1, "prefill").latency_s.value for name in table.models}
    better = min(PATHS, key=lambda name: ms[name])
    over = table.speedup(better, 1, "prefill", "chosen")
    return {
        "rows": rows,
        **{f"{name}_ms": value for name, value in ms.items()},
        "better": better,
        "chosen_over_better": over.value,
        "low": over.low,
        "high": over.high,
    }


def _write(path: Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False, newline="", encoding="utf-8"
    ) as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    Path(file.name).replace(path)


def _show(found: list[dict[str, Any]]) -> None:
    shown = Table("rows", "packed (ms)", "tiles (ms)", "chosen (ms)", "chosen / better")
    for row in found:
        interval = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        shown.add_row(
            str(row["rows"]),
            *(f"{row[f'{name}_ms']:,.0f}" for name in ("packed", "tiles", "chosen")),
            f"{row['chosen_over_better']:.2f}{interval}",
        )
    Console().print(shown)


if __name__ == "__main__":
    main()
