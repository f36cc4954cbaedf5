"""Kills a process at random moments while it saves over an index, and looks at what is left.

    OMP_NUM_THREADS=1 python experiments/006-index/kill_saves.py [TRIES]

The tests kill it once at every file operation; this one also hits the middle of a write.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from capibench.config import build, conf_dir
from capibench.index.stored_index import StoredIndex, load_index

NUM_VECTORS, DIMENSION = 20_000, 384


def make(first_id: int) -> StoredIndex:
    from omegaconf import OmegaConf

    index: StoredIndex = build(
        OmegaConf.to_container(OmegaConf.load(conf_dir() / "index" / "sq8.yaml")), "index"
    )
    vectors = np.random.default_rng(first_id).standard_normal((NUM_VECTORS, DIMENSION))
    index.build(vectors.astype(np.float32), np.arange(NUM_VECTORS) + first_id)
    return index


def main(num_tries: int) -> None:
    queries = np.random.default_rng(1).standard_normal((4, DIMENSION)).astype(np.float32)
    old, new = make(0), make(NUM_VECTORS)
    answers = [index.search(queries, 10)[0] for index in (old, new)]
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "index"
        began_s = time.perf_counter()
        old.save(folder)
        save_s = time.perf_counter() - began_s
        found = {"old": 0, "new": 0}
        for _ in range(num_tries):
            old.save(folder)
            child = os.fork()
            if child == 0:
                new.save(folder)
                os._exit(0)
            time.sleep(float(generator.uniform(0, 1.2 * save_s)))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ids = load_index(folder).search(queries, 10)[0]
            if not any(np.array_equal(ids, answer) for answer in answers):
                raise SystemExit("an index was loaded that answers wrongly")
            found["new" if np.array_equal(ids, answers[1]) else "old"] += 1
    print(f"{num_tries} saves of {save_s:.2f} s killed: {found}, never anything else")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
