"""Measures the tables in conf/embedder/modeled.yaml and conf/index/modeled.yaml.

    OMP_NUM_THREADS=1 python experiments/002-service-tables/measure.py

One thread. Every round times each batch size once, in an order drawn anew, so that a slow spell
of the machine hits all sizes; the median over rounds is the table. No size waits for another.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from omegaconf import OmegaConf

from capibench.config import build, conf_dir

SIZES = (1, 2, 4, 8, 16, 32)
NUM_ROUNDS = 60
NUM_VECTORS = 10_000
TEXT = (
    "return the number of items in a list that are not hidden and lie below the given path "
    "open file for reading write socket address parse date format string convert integer"
)


def median_seconds(call: Callable[[int], object], generator: np.random.Generator) -> None:
    times_s: dict[int, list[float]] = {size: [] for size in SIZES}
    for round_number in range(NUM_ROUNDS + 3):
        for size in generator.permutation(SIZES).tolist():
            began_s = time.perf_counter()
            call(size)
            if round_number >= 3:  # the first ones warm up
                times_s[size].append(time.perf_counter() - began_s)
    for size, taken_s in times_s.items():
        low, middle, high = statistics.quantiles(taken_s, n=4)
        print(f"  {size}: {middle:.6f}  # quartiles {low:.6f} to {high:.6f}")


def main() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    generator = np.random.default_rng(0)

    choice = OmegaConf.to_container(OmegaConf.load(conf_dir() / "embedder" / "minilm.yaml"))
    assert isinstance(choice, dict)
    embedder = build({**choice, "max_batch_size": max(SIZES)}, "embedder")
    embedder.open()
    print("embedder", embedder.describe())

    words = TEXT.split()

    def embed(size: int) -> object:
        texts = [
            " ".join(generator.choice(words, size=int(generator.integers(6, 16))))
            for _ in range(size)
        ]
        return embedder.encode(texts)

    median_seconds(embed, generator)

    vectors = generator.standard_normal((NUM_VECTORS, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    flat = OmegaConf.to_container(OmegaConf.load(conf_dir() / "index" / "flat.yaml"))
    assert isinstance(flat, dict)
    index = build({**flat, "max_batch_size": max(SIZES)}, "index")
    index.build(vectors, np.arange(NUM_VECTORS, dtype=np.int64))
    print("index", index.describe())
    median_seconds(lambda size: index.search(vectors[:size], 10), generator)


if __name__ == "__main__":
    main()
