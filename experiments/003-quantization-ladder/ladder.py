"""Every quantization method on both models: size, memory, quality and speed, and whether the
field's promises hold.

    python experiments/003-quantization-ladder/ladder.py --out reports/quantization-ladder
    python experiments/003-quantization-ladder/ladder.py --models nano --methods int8 int4 \\
        --threads 1 --rounds 3 --out /somewhere/else corpus.max_passages=300     # a quick look

Writes results.json, table.md, variants.csv, speed.csv and promises.csv into the folder, anew
after every step, so that what was measured is never lost. Artifacts are kept in the CapiBench
home and made once. What follows the options is handed to the configuration of every variant.

The baseline is the unquantized model, in bf16 and in fp32; speed-ups are given against both.
`auto` is the one that the machine has hardware for.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from plan import PROBE_TOKENS, UNQUANTIZED, Variant, group, predicted_s, shapes, variants
from processes import StepFailed, run_step
from promises import verdicts
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tables import write_tables

from capibench.artifacts import home
from capibench.config import conf_dir
from capibench.measure import environment
from capibench.model.precision import native_precision
from capibench.quantization.footprint import Footprint, FootprintSpec, memory_of
from capibench.run_folder import utc_now, write_json

PROBE_STEPS = 4


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    known = sorted(path.stem for path in (conf_dir() / "quantization").glob("*.yaml"))
    methods = [name for name in known if name != UNQUANTIZED]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["nano", "llama_1b_shape"])
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods, metavar="METHOD")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["auto", "bf16", "fp32"],
        default=["auto"],
        help="of the model that is quantized",
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of every batch size")
    parser.add_argument("--new-tokens", type=int, default=16, help="decode steps")
    parser.add_argument(
        "--long-prompt-tokens",
        type=int,
        default=512,
        help="of one more prefill, at batch 1; 0: none",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-call-s",
        type=float,
        default=120.0,
        help="leave out shapes whose every call would take longer",
    )
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=None,
        help="for the models of a group; default: 75 %% of what is free",
    )
    parser.add_argument(
        "--bandwidth-s", type=float, default=5.0, help="spent on measuring the memory's bandwidth"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", help="GROUP=CHOICE or KEY=VALUE for all variants")
    chosen = parser.parse_intermixed_args(arguments)
    if (chosen.out / "results.json").exists():
        parser.error(f"--out: {chosen.out} has a results.json; expected a new folder")
    return chosen


class Ladder:
    """Runs the steps, keeps the one document and writes it after each."""

    def __init__(self, arguments: argparse.Namespace, bar: Progress) -> None:
        self._arguments = arguments
        self._bar = bar
        self._artifacts = home() / "artifacts"
        self._budget_bytes = int(
            0.75 * psutil.virtual_memory().available
            if arguments.memory_gb is None
            else arguments.memory_gb * 1e9
        )
        self.document: dict[str, Any] = {
            "command": shlex.join(
                ["python", "experiments/003-quantization-ladder/ladder.py", *sys.argv[1:]]
            ),
            "started_at": utc_now(),
            "finished_at": None,
            "native_precision": native_precision(),
            "memory_budget_bytes": self._budget_bytes,
            "environment": environment.describe(),
            "models": {},
        }

    def write(self) -> None:
        for name, model in self.document["models"].items():
            found = verdicts(name, model["variants"], model["speed"])
            model["promises"] = [asdict(verdict) for verdict in found]
        self._arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(self._arguments.out / "results.json", self.document)
        write_tables(self.document, self._arguments.out)

    def run(self) -> None:
        for model in self._arguments.models:
            self._run_model(model)
        self.document["finished_at"] = utc_now()
        self.write()

    def _run_model(self, model: str) -> None:
        chosen = variants(
            self._arguments.methods, self._arguments.precision, self.document["native_precision"]
        )
        configs = {variant.name: self._compose(model, variant) for variant in chosen}
        record: dict[str, Any] = {
            "baseline": chosen[0].name,
            "variants": {},
            "bandwidth": [],
            "speed": [],
            "skipped": [],
            "noise": [],
        }
        self.document["models"][model] = record
        task = self._bar.add_task(f"{model}: preparing", total=2 * len(chosen), note="")
        for variant in chosen:
            entry = self._prepare(variant, configs[variant.name], task)
            record["variants"][variant.name] = entry
            self.write()
        entries = record["variants"]
        usable = {n: Footprint(**e["footprint"]) for n, e in entries.items() if not e["failed"]}
        baselines = [v.name for v in chosen if v.is_baseline and v.name in usable]
        if chosen[0].name not in baselines:
            reason = entries[chosen[0].name]["failed"]
            record["skipped"].append({"variant": "all", "reason": f"no baseline: {reason}"})
            return
        grouping = group(usable, baselines, self._budget_bytes)
        record["skipped"] += [
            {"variant": name, "reason": reason} for name, reason in grouping.too_large.items()
        ]
        record["skipped"] += [
            {"variant": name, "reason": f"no memory for it beside {', '.join(members)}"}
            for members in grouping.groups
            for name in baselines
            if name not in members
        ]
        for threads in self._arguments.threads:
            for members in grouping.groups:
                self._speed(model, record, configs, usable, members, threads)
                self.write()

    def _compose(self, model: str, variant: Variant) -> dict[str, Any]:
        overrides = [*variant.overrides(model), *self._arguments.overrides]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            resolved = OmegaConf.to_container(compose("config", overrides), resolve=True)
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def _prepare(self, variant: Variant, config: dict[str, Any], task: Any) -> dict[str, Any]:
        """Artifact, sizes, quality and footprint of one variant, or why there are none."""
        entry: dict[str, Any] = {
            "method": variant.method,
            "precision": variant.precision,
            "baseline": variant.is_baseline,
            "settings": config["quantization"],
            "failed": None,
            "artifact": None,
            "quantize_s": None,
            "disk_bytes": None,
            "disk_weight_bytes": None,
            "quality": None,
            "no_quality": None,
            "layer_errors": None,
            "footprint": None,
            "notes": [],
        }
        self._bar.update(task, note=variant.name)
        try:
            for event in run_step(
                "prepare",
                {"config": config, "artifacts": str(self._artifacts)},
                max(self._arguments.threads),
            ):
                if event["event"] == "failure":
                    entry["notes"].append(f"{event['part']}: {event['reason']}")
                else:
                    entry |= {key: value for key, value in event.items() if key != "event"}
            self._bar.advance(task)
            made = entry["artifact"]
            footprint = memory_of(
                FootprintSpec(
                    model=config["model"],
                    quantization=config["quantization"],
                    plugins=tuple(config["plugins"]),
                    artifact=None if made is None else str(self._artifacts / made),
                    num_threads=self._arguments.threads[0],
                    batch_size=1,
                    prompt_tokens=PROBE_TOKENS,
                    new_tokens=PROBE_STEPS,
                    seed=self._arguments.seed,
                )
            )
            entry["footprint"] = asdict(footprint)
        except Exception as error:  # noqa: BLE001 - recorded; the other methods go on
            # Results are passed on; where this machine keeps its artifacts is not part of them.
            reason = str(error) or type(error).__name__
            entry["failed"] = reason.replace(str(self._artifacts), "artifacts")
        if entry["quality"] is None:
            entry["no_quality"] = next(
                (note for note in entry["notes"] if note.startswith("quality")),
                "random weights have no quality",
            )
        self._bar.advance(task)
        return entry

    def _speed(
        self,
        model: str,
        record: dict[str, Any],
        configs: dict[str, dict[str, Any]],
        probes: dict[str, Footprint],
        members: list[str],
        threads: int,
    ) -> None:
        """One group; where its process dies, its methods one by one beside the baselines."""
        options = self._arguments
        wanted = [(size, options.prompt_tokens, options.new_tokens) for size in options.batch_sizes]
        if options.long_prompt_tokens:
            wanted.append((1, options.long_prompt_tokens, options.new_tokens))
        planned, skipped = shapes(wanted, members, probes, options.max_call_s)
        baselines = [name for name in members if record["variants"][name]["baseline"]]
        calls = sum(len(s.members) * len(s.batch_sizes) for s in planned) * (1 + options.rounds)
        minutes = (
            (1 + options.rounds)
            / 60
            * sum(
                predicted_s(probes[name], size, shape.prompt_tokens, shape.new_tokens)
                for shape in planned
                for size in shape.batch_sizes
                for name in shape.members
            )
        )
        self._bar.console.print(
            f"{model}, {threads} thread(s), {', '.join(members)}: at most {minutes:,.0f} minutes"
        )
        task = self._bar.add_task(
            f"{model}: {threads} thread(s)", total=calls + len(members), note=""
        )
        spec = {
            "num_threads": threads,
            "plugins": configs[members[0]]["plugins"],
            "members": [
                {
                    "name": name,
                    "model": configs[name]["model"],
                    "quantization": configs[name]["quantization"],
                    "artifact": record["variants"][name]["artifact"],
                }
                for name in members
            ],
            "shapes": [
                {
                    **asdict(shape),
                    "baseline": members[0],
                    "against": [name for name in baselines if name in shape.members],
                }
                for shape in planned
            ],
            "artifacts": str(self._artifacts),
            "rounds": options.rounds,
            "seed": options.seed,
            "bandwidth_s": options.bandwidth_s,
        }
        rows, drifts, bandwidths = [], [], []
        failure = None
        try:
            for event in run_step("speed", spec, threads):
                if event["event"] == "progress":
                    self._bar.update(task, advance=1, note=event["text"])
                elif "rows" in event:
                    rows += event["rows"]
                    drifts.append(event["drift"])
                else:
                    bandwidths.append(event["bandwidth_bytes_per_s"])
        except StepFailed as error:
            failure = str(error)
        methods = [name for name in members if name not in baselines]
        if failure is not None and len(methods) > 1:
            for name in methods:
                self._speed(model, record, configs, probes, [*baselines, name], threads)
            return
        number = len(record["noise"])
        record["speed"] += [{**row, "group": number} for row in rows]
        record["skipped"] += [{**one, "threads": threads} for one in skipped]
        record["bandwidth"] += [{"threads": threads, "bytes_per_s": b} for b in bandwidths]
        record["noise"].append(
            {"group": number, "threads": threads, "members": members, "drift": drifts}
        )
        if failure is not None:
            record["skipped"] += [
                {"variant": name, "threads": threads, "reason": f"speed: {failure}"}
                for name in methods or members
            ]


def main() -> None:
    arguments = parse()
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        # Redrawing takes time from what is being measured.
        refresh_per_second=2,
        disable=not console.is_terminal,
    )
    with bar:
        Ladder(arguments, bar).run()
    print(arguments.out / "table.md")


if __name__ == "__main__":
    main()
