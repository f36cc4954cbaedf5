"""What serves in the batching study: service tables, workers, and the shipped strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from capibench.batching.offline import Array
from capibench.batching.service_table import ServiceTable
from capibench.batching.simulate import Offered
from capibench.config import build, conf_dir

MAX_BATCH_SIZE = 32  # of every table; the shipped strategies form no larger batches
PROMPT_TOKENS, NEW_TOKENS = 64, 32  # of a request to the measured engine
ITERATIONS = 16  # of a request to the made machine, for strategies that join running batches
# Longest good latency over the time of the largest batch: all alike, or by priority.
OBJECTIVE = 2.5
OBJECTIVES = {1: 1.5, 2: 2.5, 3: 5.0, 4: 12.0, 5: 50.0}
SHARES = {1: 0.10, 2: 0.20, 3: 0.50, 4: 0.15, 5: 0.05}


@dataclass(frozen=True)
class Machine:
    """Workers that share one service table; a worker of speed 2 takes half the time."""

    name: str
    service: ServiceTable
    worker_speeds: tuple[float, ...]

    @property
    def capacity_per_s(self) -> float:
        return self.service.capacity_per_s * sum(self.worker_speeds)

    @property
    def longest_batch_s(self) -> float:
        return self.service.batch_s[-1]


def affine() -> ServiceTable:
    """A batch of n takes 10 + 2n ms."""
    return ServiceTable.affine(0.010, 0.002, MAX_BATCH_SIZE, ITERATIONS)


def measured() -> ServiceTable:
    """The table of conf/engine/modeled.yaml, measured on the real engine with `nano`."""
    engine = build(choice("engine", "modeled"), "engine")
    sizes = range(1, MAX_BATCH_SIZE + 1)
    return ServiceTable(
        prefill_s=[engine.base_s + engine.prefill_s_per_token * n * PROMPT_TOKENS for n in sizes],
        step_s=[engine.step_s(n) for n in sizes],
        num_steps=NEW_TOKENS - 1,  # the prefill gives the first token
        base_s=engine.base_s,  # as conf/engine/modeled_continuous.yaml has it
    )


MACHINES = {
    "affine": lambda: Machine("affine", affine(), (1.0,)),
    "nano": lambda: Machine("nano", measured(), (1.0,)),
    "three_workers": lambda: Machine("three_workers", affine(), (1.0, 1.0, 0.25)),
}


def offer(times_s: Array, machine: Machine, classes: bool, rng: np.random.Generator) -> Offered:
    """Requests at `times_s`, all alike, or of five classes with objectives of their own."""
    if not classes:
        return Offered.alike(times_s, OBJECTIVE * machine.longest_batch_s)
    priority = rng.choice(list(SHARES), size=len(times_s), p=list(SHARES.values()))
    factors = np.array([OBJECTIVES[number] for number in priority.tolist()])
    return Offered(times_s, factors * machine.longest_batch_s, priority)


def choice(group: str, name: str) -> dict[str, Any]:
    """The plain values of `conf/<group>/<name>.yaml`."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def strategy_names() -> list[str]:
    """Every shipped choice, `none` (no batching, the baseline) included."""
    return sorted(path.stem for path in (conf_dir() / "batching").glob("*.yaml"))


def fresh_strategy(name: str, machine: Machine) -> Any:
    """A strategy as shipped. What it is told about latency is the objective of the study."""
    node = choice("batching", name)
    if "objective_ms" in node["strategy"]:
        node["strategy"]["objective_ms"] = 1000 * OBJECTIVE * machine.longest_batch_s
    return build(node, "batching").strategy
