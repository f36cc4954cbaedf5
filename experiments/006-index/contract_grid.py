"""Runs the index contract over its whole grid: every type, every size, every dimension.

    PYTHONPATH=tests OMP_NUM_THREADS=1 python experiments/006-index/contract_grid.py [TYPE ...]

The tests run a part of it. One line per type and dimension; a failure ends it with its traceback.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import faiss
from choice_files import choices, load_choice
from index_contract import check_contract

from capibench.config import build
from capibench.errors import MissingExtra

SIZES = (1, 10, 100, 900, 5_000)
DIMENSIONS = (64, 100, 384, 768)


def check(name: str, n: int, d: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_contract(lambda: build(load_choice("index", name), "index"), n, d, Path(folder))


def main(names: list[str]) -> None:
    faiss.omp_set_num_threads(1)
    for name in names or [n for n in choices("index") if n not in ("modeled", "hybrid_text")]:
        try:
            build(load_choice("index", name), "index")
        except MissingExtra as error:
            print(f"{name}: skipped: {error}")
            continue
        for d in DIMENSIONS:
            began_s = time.perf_counter()
            for n in SIZES:
                check(name, n, d)
            sizes = ", ".join(str(n) for n in SIZES)
            print(f"{name} d={d} n={sizes}: ok, {time.perf_counter() - began_s:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
