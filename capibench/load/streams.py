"""Randomness of a load: one seed, one generator per thing that is drawn.

Each part of a load draws from a stream of its own, so that changing one (the priorities, say) never
changes another (the arrivals), and no other component of the stack can change any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DrawStreams:
    """Generators for one sequence of requests."""

    arrivals: np.random.Generator
    popularity: np.random.Generator
    classes: np.random.Generator
    priorities: np.random.Generator
    think_times: np.random.Generator


@dataclass(frozen=True, slots=True)
class LoadStreams:
    """Warm-up and measured requests draw apart, but share which questions are the popular ones."""

    ranks: np.random.Generator
    warmup: DrawStreams
    measure: DrawStreams

    @classmethod
    def spawn(cls, seed: int, repeat: int) -> LoadStreams:
        """The streams of repetition `repeat` under `seed`.

        Repetitions differ in every draw but one: which questions are popular belongs to the
        workload, so it depends on the seed alone.
        """
        workload = np.random.SeedSequence(seed)
        ranks, draws = workload.spawn(2)
        repetition = np.random.SeedSequence(
            entropy=draws.entropy, spawn_key=(*draws.spawn_key, repeat)
        )
        warmup, measure = repetition.spawn(2)
        return cls(np.random.default_rng(ranks), _draw_streams(warmup), _draw_streams(measure))


def _draw_streams(sequence: np.random.SeedSequence) -> DrawStreams:
    return DrawStreams(*(np.random.default_rng(child) for child in sequence.spawn(5)))
