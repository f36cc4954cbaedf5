"""Is embedding texts of mixed lengths in batches ever slower than one by one?

    OMP_NUM_THREADS=1 python experiments/004-batching/embedding.py            # about 90 s
    OMP_NUM_THREADS=1 python experiments/004-batching/embedding.py --passes   # what a pass costs

One thread; texts of the shipped corpus. Every round draws one batch of every mix and size, and
embeds it in each way, in an order drawn anew: one by one, as it came (one pass, padded to its
longest text), and as `MiniLm.encode` divides it. A ratio is the time of all rounds together over
that of the other way, its interval a paired bootstrap over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from omegaconf import OmegaConf

from capibench.config import build, conf_dir
from capibench.embedder.minilm import MiniLm

SIZES = (4, 16)
MIXES = {"questions": 1.0, "half and half": 0.5, "passages": 0.0}  # share of questions
ONE_PASS = 10**9  # as the cost of a pass: never worth a second one
PASS_ROWS = (1, 2, 4, 8, 16, 32)
PASS_TOKENS = (8, 16, 32, 64, 128, 256)
MOST_TOKENS = 4096
RESAMPLES = 2000


def choice(group: str, name: str, **changes: object) -> dict[str, object]:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {**{str(key): value for key, value in node.items()}, **changes}


def embedder(**changes: object) -> MiniLm:
    made: MiniLm = build(choice("embedder", "minilm", max_batch_size=max(SIZES), **changes), "")
    made.open()
    return made


def seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def interval(a: np.ndarray, b: np.ndarray, generator: np.random.Generator) -> tuple[float, ...]:
    """Ratio of the sums of `a` and `b` (one value per round each), with its 95 % interval."""
    drawn = generator.integers(0, len(a), (RESAMPLES, len(a)))
    ratios = a[drawn].sum(axis=1) / b[drawn].sum(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(a.sum() / b.sum()), float(low), float(high)


def compare(limit_s: float) -> None:
    generator = np.random.default_rng(0)
    corpus = build(choice("corpus", "pydocs"), "corpus").load()
    questions = [question.text for question in corpus.questions]
    passages = [passage.text for passage in corpus.passages]
    ours = embedder()
    padded = embedder(forward_tokens=ONE_PASS, max_forward_tokens=ONE_PASS)
    print("embedder", ours.describe())

    def one_by_one(texts: list[str]) -> None:
        for text in texts:
            ours.encode([text])

    ways = {"one by one": one_by_one, "as it came": padded.encode, "divided": ours.encode}
    cases = [(mix, size) for mix in MIXES for size in SIZES]
    times_s: dict[tuple[str, int], dict[str, list[float]]] = {
        case: {way: [] for way in ways} for case in cases
    }
    for way in ways.values():
        way(passages[: max(SIZES)])  # first calls are slower
    until_s = time.perf_counter() + limit_s
    while time.perf_counter() < until_s:
        for mix, size in cases:
            is_question = generator.random(size) < MIXES[mix]
            texts = [
                str(generator.choice(questions if asked else passages)) for asked in is_question
            ]
            for way in generator.permutation(list(ways)).tolist():
                taken_s = seconds(lambda way=way, texts=texts: ways[way](texts))
                times_s[mix, size][way].append(taken_s)
    print("| texts | batch | texts/s one by one | as it came | divided | rounds |")
    print("|---|---|---|---|---|---|")
    for mix, size in cases:
        taken = {way: np.array(values) for way, values in times_s[mix, size].items()}
        alone = taken["one by one"]
        cells = []
        for way in ("as it came", "divided"):
            ratio, low, high = interval(alone, taken[way], generator)
            cells.append(f"{ratio:.2f}x [{low:.2f}, {high:.2f}]")
        rate = size * len(alone) / alone.sum()
        print(f"| {mix} | {size} | {rate:.0f} | {' | '.join(cells)} | {len(alone)} |")


def measure_passes(limit_s: float) -> None:
    """Seconds of one pass by rows and tokens, and the `forward_tokens` that fits them best."""
    generator = np.random.default_rng(0)
    padded = embedder(forward_tokens=ONE_PASS, max_forward_tokens=ONE_PASS)
    print("embedder", padded.describe())
    shapes = [(r, t) for t in PASS_TOKENS for r in PASS_ROWS if r * t <= MOST_TOKENS]
    times_s: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    until_s = time.perf_counter() + limit_s
    while time.perf_counter() < until_s:
        for at in generator.permutation(len(shapes)).tolist():
            rows, tokens = shapes[at]
            texts = ["word " * (tokens - 2)] * rows  # [CLS] and [SEP] are the other two
            times_s[shapes[at]].append(seconds(lambda texts=texts: padded.encode(texts)))
    medians = {shape: statistics.median(taken) for shape, taken in times_s.items()}
    print(f"ms, medians of {len(times_s[shapes[0]])} interleaved rounds")
    print("| tokens | " + " | ".join(f"{rows} rows" for rows in PASS_ROWS) + " |")
    print("|---" * (len(PASS_ROWS) + 1) + "|")
    for tokens in PASS_TOKENS:
        cells = [
            f"{1e3 * medians[rows, tokens]:.2f}" if (rows, tokens) in medians else ""
            for rows in PASS_ROWS
        ]
        print(f"| {tokens} | {' | '.join(cells)} |")
    for most in (256, 1024, MOST_TOKENS):
        fitted = [(rows * tokens, s) for (rows, tokens), s in medians.items()]
        x, y = np.array([(n, s) for n, s in fitted if n <= most]).T
        columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
        base_s, slope = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
        worst = np.max(np.abs((base_s + slope * x) / y - 1))
        print(f"up to {most} tokens: forward_tokens {base_s / slope:.0f}, worst error {worst:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passes", action="store_true", help="measure passes by shape instead")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long to measure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (measure_passes if arguments.passes else compare)(arguments.seconds)


if __name__ == "__main__":
    main()
