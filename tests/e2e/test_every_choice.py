"""Every single choice of every group composes and runs; the ground on which sweeps stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from choice_files import choices
from tiny_llama import save_tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"

# Choices that need something from the user, given here; and the ones too big for a test machine's
# patience, made smaller in the dimension that costs.
NEEDED = {
    ("corpus", "jsonl"): [
        f"corpus.passages_path={FIXTURES}/corpus/passages.jsonl",
        f"corpus.questions_path={FIXTURES}/corpus/questions.jsonl",
    ],
    ("corpus", "squad"): [f"corpus.path={FIXTURES}/corpus/squad.json"],
    ("corpus", "pydocs"): ["corpus.max_passages=300"],
    ("corpus", "pydocs_installed"): ["corpus.packages=[rich]", "corpus.max_passages=120"],
    ("batching", "continuous"): ["engine=transformers_continuous"],
    ("load", "replay"): [f"load.path={FIXTURES}/traces/azure_made.csv"],
    ("index_tuning", "recall_target"): ["index=ivf"],
    ("cache/prefetch", "followers"): ["cache/tiers=l1_l2"],
    ("model", "llama_1b_shape"): ["model.num_layers=1", "load.num_requests=2"],
    ("model", "llama_60m_shape"): ["model.num_layers=1"],
    **{
        ("quantization", name): ["quantization.num_samples=8", "quantization.sequence_tokens=64"]
        for name in ("gptq_3bit", "gptq_4bit", "gptq_8bit", "awq_4bit", "static_int8")
    },
    ("quantization", "mixed"): ["quantization.sensitivity_tokens=100"],
}
GROUPS = (
    "batching", "cache", "cache/misses", "cache/prefetch", "cache/semantic", "cache/tiers",
    "corpus", "embedder", "engine", "index", "index_tuning", "load", "model", "prompt",
    "quantization", "slo", "time", "tracking", "experiment/demo",
)  # fmt: skip
OPTIONAL = {("index", "hnswlib"): "hnswlib", ("index", "usearch"): "usearch"}  # choice → extra
REFUSED = {("cache", "belady")}  # knows the future: a bound of `replay-cache`, never a run
SAME = {("cache/prefetch", "none")}  # what every other case with a cache runs


def cases() -> list[tuple[str, str]]:
    every = [(group, name) for group in GROUPS for name in choices(group)]
    return [case for case in every if case not in REFUSED | SAME]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a byte a token that quantizes, and is judged, many times faster than the shipped
    one; its layers take groups of 128."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), ffn_size=256, num_positions=8192)


@pytest.fixture(scope="session")
def short_texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that choose fifty short passages, half of them held out: quantizing reads some
    of them and judging all the others, token by token."""
    folder = tmp_path_factory.mktemp("short_texts")
    passages, questions = folder / "passages.jsonl", folder / "questions.jsonl"
    with passages.open("w") as passage_lines, questions.open("w") as question_lines:
        for n in range(50):
            text = f"The {n}th of {n * n} numbers is {n * 7919 % 1000}, said nobody ever."
            passage = {"id": f"p{n}", "text": text}
            question = {
                "text": f"Which is the {n}th number?",
                "relevant": [f"p{n}"],
                "split": "train" if n % 2 else "heldout",
            }
            passage_lines.write(json.dumps(passage) + "\n")
            question_lines.write(json.dumps(question) + "\n")
    return [
        "corpus=jsonl",
        f"corpus.passages_path={passages}",
        f"corpus.questions_path={questions}",
    ]


@pytest.mark.parametrize(("group", "name"), cases())
def test_choice_runs(
    group: str,
    name: str,
    run_here: Callable[..., object],
    tmp_path: Path,
    tiny: Path,
    short_texts: list[str],
) -> None:
    if (group, name) in OPTIONAL:
        pytest.importorskip(OPTIONAL[group, name])
    needed = NEEDED.get((group, name), [])
    if (group, name) == ("model", "hf"):
        import capibench.model

        needed = [f"model.path={Path(capibench.model.__file__).parent / 'nano'}"]
    if group == "quantization":
        needed = [*needed, "model=hf", f"model.path={tiny}", *short_texts]
    small = [
        "load.num_requests=6",
        "load.warmup_requests=2",
        "load.max_new_tokens={short: 3, technical: 4, long: 6, coding: 4}",
        *(["load.rate_per_s=50"] if group != "load" else []),
        *(["corpus.max_passages=300"] if group not in ("corpus", "quantization") else []),
        *(["tracking=none"] if group != "tracking" else []),
    ]
    choice = f"experiment=demo/{name}" if group == "experiment/demo" else f"{group}={name}"
    outcome = run_here(choice, *small, *needed, small=False)
    document = outcome.document
    assert document["status"] == "finished", document["reason"]
    rows = outcome.rows
    assert (rows.status == "ok").all(), json.dumps(rows.error.tolist())
    assert document["metrics"]["success_rate"]["n"] == (rows.phase == "measure").sum() > 0
