"""Lets autofaiss choose by its own rules, in an environment of its own: it needs numpy below 2, and
for its quantized choices a FAISS that still takes the names of its arguments.

    python -m venv autofaiss-env
    autofaiss-env/bin/pip install autofaiss 'pyarrow<21' 'faiss-cpu<1.12'
    OMP_NUM_THREADS=1 autofaiss-env/bin/python experiments/006-index/autofaiss_choices.py \\
        VECTORS.npy OUT --query-ms 0.15

For several budgets of memory: the index (NAME.index), the parameters that autofaiss set so that a
query takes at most so long (NAME.setting), and what it cost (NAME.json). autofaiss chooses by n,
dimension and memory, and tunes to a latency; it measures no recall while it does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import faiss
import numpy as np
from autofaiss import build_index

# Room for a graph, for the vectors just so, and for short codes only (of 77 MB of vectors).
BUDGETS = ("200MB", "85MB", "20MB", "5MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--query-ms", type=float, required=True)
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    vectors = np.load(chosen.vectors)
    faiss.omp_set_num_threads(1)
    for budget in chosen.budgets:
        path = chosen.out / f"autofaiss-{budget}.index"
        begin_s = time.perf_counter()
        _, infos = build_index(
            vectors,
            index_path=str(path),
            index_infos_path=str(path.with_suffix(".infos.json")),
            max_index_query_time_ms=chosen.query_ms,
            max_index_memory_usage=budget,
            current_memory_available="4GB",
            metric_type="ip",
            nb_cores=1,
            verbose=40,
        )
        seconds = time.perf_counter() - begin_s
        facts = {key: infos[key] for key in ("index_key", "index_param") if key in infos}
        path.with_suffix(".setting").write_text(str(infos["index_param"]), encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps({**facts, "seconds": seconds}))
        print(budget, facts, f"{seconds:.1f} s")


if __name__ == "__main__":
    main()
