"""What a person meets first: help that is light, errors that are one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

HEAVY = ("torch", "transformers", "faiss", "mlflow", "pandas", "matplotlib", "pyarrow")
# For what is noticed only after the corpus is read: without the imports of a model, seconds each.
LIGHT = "time=virtual corpus.max_passages=300"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["study", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        f"sys.argv = ['capibench', *{arguments!r}]\n"
        f"show = lambda: print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
        "atexit.register(show)\n"
        "from capibench.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert "capibench" in done.stdout


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cache=nothing_like_it", ["cache", "lru", "ttl", "none"]),
        ("batching.strategy.max_batch_size=many", ["batching.strategy.max_batch_size", "many"]),
        ("batching.strategy.max_batch_size=0", ["batching.strategy.max_batch_size", "0"]),
        ("batching.strategy.max_size=3", ["batching.strategy.max_size", "3"]),
        ("+batching.strategy.max_size=3", ["batching.strategy.max_size", "3", "max_batch_size"]),
        ("~load.rate_per_s", ["load.rate_per_s", "missing"]),
        ("load=replay", ["load.path"]),
        (f"{LIGHT} load=replay load.path=nowhere.csv", ["load.path", "nowhere.csv"]),
        (
            "index=ivf index.nlist=99999 embedder=hashing engine=echo corpus.max_passages=300",
            ["index.nlist", "99999"],
        ),
        ("corpus=null", ["GROUP=CHOICE"]),
        ("name=null", ["name", "str"]),
        ("plugins=foo", ["plugins", "foo"]),
        ("prompt.top_k=0", ["prompt.top_k", "0"]),
        (LIGHT + " load.class_mix={poem:1.0}", ["load.class_mix.poem"]),
        ("nonsense=1", ["nonsense"]),
        ("cache.policy._target_=os.system", ["cache.policy._target_", "os.system", "plugins"]),
        ("time=virtual engine=transformers_static", ["engine", "time=virtual"]),
        ("cache=lru cache.tiers.l1_mib=nan", ["cache.tiers.l1_mib: got nan; expected a finite"]),
        ("cache=lru cache.ttl_s.embedding=inf", ["cache.ttl_s.embedding: got inf; expected"]),
        ("cache=s3_fifo cache.policy.small_share=nan", ["cache.policy.small_share: got nan"]),
        ("cache=lru cache.misses.ttl_jitter=1e400", ["cache.misses.ttl_jitter: got inf"]),
        (
            "batching=adaptive batching.strategy.max_wait_ms=-inf",
            ["batching.strategy.max_wait_ms: got -inf"],
        ),
        ("load.rate_per_s=inf", ["load.rate_per_s: got inf"]),
        ("load.class_mix={short:nan}", ["load.class_mix.short: got nan"]),
        ("index=modeled index.service_table_s={1:nan}", ["index.service_table_s.1: got nan"]),
        ("-m cache=lru cache.tiers.l1_mib=8,nan", ["cache.tiers.l1_mib: got nan; expected"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    override: str, said: list[str], capibench: Callable[..., object]
) -> None:
    done = capibench("run", *override.split(), "tracking=none")
    assert done.code == 2
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    for word in said:
        assert word in lines[0]


def test_a_study_with_one_wrong_value_runs_nothing(capibench: Callable[..., object]) -> None:
    done = capibench("run", "-m", "load.rate_per_s=1,-1", "time=virtual", "tracking=none")
    assert done.code == 2
    assert "load.rate_per_s" in done.err.strip().splitlines()[-1]
    assert done.out == ""


def test_completion_offers_options(capibench: Callable[..., object]) -> None:
    line = "capibench run cache="
    done = capibench("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)), COMP_CWORD="2")
    assert {"cache=lru", "cache=ttl", "cache=none"} <= set(done.out.split())
