"""Compares batches that run to their end with rows that join and leave, on real models.

    OMP_NUM_THREADS=1 python experiments/004-batching/engines.py            # about 100 minutes
    OMP_NUM_THREADS=1 python experiments/004-batching/engines.py --models nano --repeats 3

One thread, fp32. Four parts per model:

* steps: seconds per decode step of 1 to 32 rows on either engine, whose prompts have the same
  length and whose lengths differ (where the static engine pads);
* short: a backlog of prompts of 16 tokens, 32 new tokens each, in static batches of 1 to 64;
* mixed: a backlog of prompts of 16 to 64 tokens with 4 to 64 new tokens, on both engines;
* poisson: half as many of those, arriving at `LOADS` of the best static throughput just measured;
  static batches of 8 to 32, and the continuous engine with the rows that were best for it.

Every repeat runs all variants of a part in an order drawn anew, over the same requests. A backlog
is worked off greedily: a static batch takes what waits when its worker is free, the continuous
engine is handed the next request when a row is free. Who dispatches is thus the same simple rule
on both sides, and the engines are what differs. Writes a row per variant and repeat into
results/engines.csv beside this file, and prints a table with 95 % intervals over repeats. A p99 of
one repeat is little more than its slowest request; what the repeats say together counts.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import OmegaConf
from scipy import stats as scipy_stats

from capibench.clock import RealTime
from capibench.config import build, conf_dir
from capibench.engine.calibrate import texts
from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.transformers_continuous import TransformersContinuous
from capibench.engine.transformers_static import TransformersStatic
from capibench.measure.noise import calibrate
from capibench.model.language_model import LanguageModel

STATIC_ROWS = (1, 4, 8, 16, 32, 64)
CONTINUOUS_ROWS = (8, 16, 32, 64)
POISSON_STATIC_ROWS = (8, 16, 32)
STEP_ROWS = (1, 2, 4, 8, 16, 32)
STEP_TOKENS = 33  # 32 steps
LOADS = (0.5, 0.8)
NUM_REQUESTS = {"nano": 192, "llama_60m_shape": 128}  # of a backlog
PARTS = ("steps", "short", "mixed", "poisson")
AnyEngine = TransformersStatic | TransformersContinuous


@dataclass(frozen=True)
class Variant:
    """An engine and how many requests it runs at once."""

    engine: str  # "static" or "continuous"
    rows: int


ENGINES = [
    *(Variant("static", rows) for rows in STATIC_ROWS),
    *(Variant("continuous", rows) for rows in CONTINUOUS_ROWS),
]


@dataclass(frozen=True)
class Measured:
    """One row of the CSV: one variant in one repeat."""

    model: str
    part: str
    engine: str
    rows: int
    load: float | None  # of the best static throughput; None: a backlog
    repeat: int
    noise_s: float  # a fixed kernel, just before
    num_requests: int
    requests_per_s: float
    tokens_per_s: float  # new ones
    step_s: float | None
    ttft_p50_s: float | None  # from arrival
    ttft_p99_s: float | None


@dataclass(frozen=True)
class Work:
    """Requests and when each arrives, in seconds from the start, ascending."""

    requests: Sequence[GenerationRequest]
    arrival_s: Sequence[float]


class Prompts:
    """Prompts of given lengths in tokens, from documentation of the standard library."""

    def __init__(self, model: LanguageModel) -> None:
        longest = model.tokenizer.model_max_length
        self._ids = [
            token
            for text in texts()
            for token in model.tokenizer(text[:longest], add_special_tokens=False)["input_ids"]
        ]
        self._model = model
        self._at = 0

    def take(self, num_tokens: int) -> str:
        """About so many tokens: text encodes a little shorter or longer than it was decoded."""
        self._at = (self._at + 131) % (len(self._ids) - num_tokens)
        text: str = self._model.tokenizer.decode(self._ids[self._at : self._at + num_tokens])
        return text


async def serve(engine: AnyEngine, variant: Variant, work: Work) -> tuple[list[Generation], float]:
    """Answers in order of arrival, and the time at which the work began."""
    loop = asyncio.get_running_loop()
    waiting: deque[int] = deque()
    answers: dict[int, Generation] = {}
    running: set[asyncio.Task[None]] = set()
    free = variant.rows  # of the continuous engine; the static one runs one batch at a time
    finished = loop.create_future()
    begin_s = loop.time()

    async def run(numbers: Sequence[int]) -> None:
        nonlocal free
        done = await engine.generate([work.requests[number] for number in numbers], 0)
        answers.update(zip(numbers, done, strict=True))
        free += len(numbers) if variant.engine == "continuous" else variant.rows
        dispatch()
        if len(answers) == len(work.requests) and not finished.done():
            finished.set_result(None)

    def dispatch() -> None:
        nonlocal free
        while waiting and free:
            size = 1 if variant.engine == "continuous" else min(variant.rows, len(waiting))
            numbers = [waiting.popleft() for _ in range(size)]
            free -= size if variant.engine == "continuous" else variant.rows
            task = loop.create_task(run(numbers))
            running.add(task)
            task.add_done_callback(running.discard)

    for number, arrival_s in enumerate(work.arrival_s):
        if begin_s + arrival_s > loop.time():
            await asyncio.sleep(begin_s + arrival_s - loop.time())
        waiting.append(number)
        if number + 1 == len(work.requests) or work.arrival_s[number + 1] > arrival_s:
            dispatch()
    await finished
    return [answers[number] for number in range(len(work.requests))], begin_s


def open_engine(variant: Variant) -> AnyEngine:
    if variant.engine == "static":
        return TransformersStatic(num_workers=1, kv_cache="native")
    return TransformersContinuous(
        num_workers=1, max_rows=variant.rows, kv_cache="native", prefill_chunk_tokens=None,
        prefix_cache_bytes=None,
    )  # fmt: skip


async def measure(
    model: LanguageModel, variant: Variant, work: Work
) -> tuple[list[Generation], float]:
    """One fresh engine, warmed up, and what it answered."""
    engine = open_engine(variant)
    await engine.start(model)
    try:
        few = work.requests[: min(4, variant.rows)]
        await engine.generate([GenerationRequest(r.prompt, 4) for r in few], 0)
        return await serve(engine, variant, work)
    finally:
        await engine.stop()


class Study:
    """All parts of one model."""

    def __init__(
        self, name: str, model: LanguageModel, repeats: int, num_requests: int, seed: int
    ) -> None:
        self._name = name
        self._num_requests = num_requests
        self._model = model
        self._repeats = repeats
        self._random = np.random.default_rng(seed)
        self._prompts = Prompts(model)
        self.rows: list[Measured] = []

    def steps(self) -> None:
        variants = [Variant(e, n) for e in ("static", "continuous") for n in STEP_ROWS]
        for part, lengths in (("steps", (64, 65)), ("steps ragged", (16, 112))):
            for repeat in range(self._repeats):
                work = {n: self._draw(n, lengths, (STEP_TOKENS, STEP_TOKENS)) for n in STEP_ROWS}
                for variant in self._shuffled(variants):
                    self._measure(part, variant, work[variant.rows], repeat, together=True)

    def short(self) -> None:
        for repeat in range(self._repeats):
            work = self._draw(self._num_requests, (16, 17), (32, 32))
            for variant in self._shuffled([Variant("static", n) for n in STATIC_ROWS]):
                self._measure("short", variant, work, repeat)

    def mixed(self) -> None:
        for repeat in range(self._repeats):
            work = self._draw(self._num_requests, (16, 65), (4, 64))
            for variant in self._shuffled(ENGINES):
                self._measure("mixed", variant, work, repeat)

    def poisson(self) -> None:
        variant = best(self.rows, "mixed", "static")
        rates = [r.requests_per_s for r in chosen(self.rows, "mixed", variant)]
        capacity = float(np.mean(rates))
        variants = [Variant("static", n) for n in POISSON_STATIC_ROWS]
        variants.append(best(self.rows, "mixed", "continuous"))
        for load in LOADS:
            for repeat in range(self._repeats):
                work = self._draw(-(-self._num_requests // 2), (16, 65), (4, 64), load * capacity)
                for variant in self._shuffled(variants):
                    self._measure("poisson", variant, work, repeat, load)

    def _draw(
        self,
        num_requests: int,
        prompt_tokens: tuple[int, int],
        new_tokens: tuple[int, int],
        rate_per_s: float | None = None,
    ) -> Work:
        requests = [
            GenerationRequest(
                self._prompts.take(int(self._random.integers(*prompt_tokens))),
                int(self._random.integers(new_tokens[0], new_tokens[1] + 1)),
            )
            for _ in range(num_requests)
        ]
        if rate_per_s is None:
            return Work(requests, [0.0] * num_requests)
        gaps_s = self._random.exponential(1 / rate_per_s, num_requests)
        return Work(requests, np.cumsum(gaps_s).tolist())

    def _shuffled(self, variants: Sequence[Variant]) -> list[Variant]:
        return [variants[i] for i in self._random.permutation(len(variants))]

    def _measure(
        self,
        part: str,
        variant: Variant,
        work: Work,
        repeat: int,
        load: float | None = None,
        together: bool = False,
    ) -> None:
        noise_s = calibrate()
        answers, begin_s = RealTime(num_threads=1).run(measure(self._model, variant, work))
        end_s = max(answer.last_token_s for answer in answers)
        new_tokens = sum(answer.output_tokens for answer in answers)
        step_s = None
        if together:  # from when all rows had their first token until the first was done
            first_s = max(answer.first_token_s for answer in answers)
            span_s = min(answer.last_token_s for answer in answers) - first_s
            step_s = span_s / (STEP_TOKENS - 1)
        waits_s = np.array(
            [
                answer.first_token_s - begin_s - arrival_s
                for answer, arrival_s in zip(answers, work.arrival_s, strict=True)
            ]
        )
        self.rows.append(
            Measured(
                self._name, part, variant.engine, variant.rows, load, repeat, noise_s,
                len(answers), len(answers) / (end_s - begin_s), new_tokens / (end_s - begin_s),
                step_s, float(np.quantile(waits_s, 0.5)), float(np.quantile(waits_s, 0.99)),
            )
        )  # fmt: skip
        print(".", end="", file=sys.stderr, flush=True)


def chosen(
    rows: Sequence[Measured], part: str, variant: Variant, load: float | None = None
) -> list[Measured]:
    """The repeats of one variant, in their order."""
    return [
        row
        for row in rows
        if (row.part, row.engine, row.rows, row.load) == (part, variant.engine, variant.rows, load)
    ]


def best(rows: Sequence[Measured], part: str, engine: str) -> Variant:
    """The batch size with the highest mean throughput."""
    sizes = {row.rows for row in rows if (row.part, row.engine) == (part, engine)}
    return max(
        (Variant(engine, size) for size in sorted(sizes)),
        key=lambda v: np.mean([row.requests_per_s for row in chosen(rows, part, v)]),
    )


def with_interval(values: npt.ArrayLike) -> str:
    """Mean and 95 % interval over repeats (Student's t)."""
    samples = np.asarray(values, dtype=np.float64)
    if len(samples) < 2:
        return f"{samples.mean():.4g} (one repeat)"
    quantile = scipy_stats.t.ppf(0.975, len(samples) - 1)
    margin = quantile * samples.std(ddof=1) / np.sqrt(len(samples))
    return f"{samples.mean():.4g} ({samples.mean() - margin:.4g} to {samples.mean() + margin:.4g})"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Geometric mean of the ratios, repeat by repeat, with its 95 % interval."""
    logs = np.log(np.asarray(above) / np.asarray(below))
    if len(logs) < 2:
        return f"{np.exp(logs.mean()):.3g}x (one repeat)"
    margin = scipy_stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, high = np.exp(logs.mean() - margin), np.exp(logs.mean() + margin)
    return f"{np.exp(logs.mean()):.3g}x ({low:.3g} to {high:.3g})"


def report(name: str, rows: Sequence[Measured]) -> None:
    """Tables of one model, and the ratios that the issue asks for."""
    noise = np.array([row.noise_s for row in rows])
    print(f"\n## {name} (noise kernel: {noise.min() * 1e3:.2f} to {noise.max() * 1e3:.2f} ms)")
    for part in ("steps", "steps ragged"):
        if not any(row.part == part for row in rows):
            continue
        print(f"\n{part}: ms per step\n\n| rows | static | continuous | ratio |\n|---|---|---|---|")
        for size in STEP_ROWS:
            static, joined = (
                [r.step_s * 1e3 for r in chosen(rows, part, Variant(e, size)) if r.step_s]
                for e in ("static", "continuous")
            )
            print(
                f"| {size} | {with_interval(static)} | {with_interval(joined)} | "
                f"{ratio(joined, static)} |"
            )
    settings = sorted({(r.part, r.load) for r in rows if r.step_s is None}, key=str)
    for part, load in settings:
        print(
            f"\n{part}{'' if load is None else f' at {load} of the best static throughput'}\n\n"
            "| engine | rows | requests/s | new tokens/s | TTFT p50 ms | TTFT p99 ms |\n"
            "|---|---|---|---|---|---|"
        )
        for variant in ENGINES:
            found = chosen(rows, part, variant, load)
            if found:
                columns = (
                    [r.requests_per_s for r in found],
                    [r.tokens_per_s for r in found],
                    [r.ttft_p50_s * 1e3 for r in found if r.ttft_p50_s],
                    [r.ttft_p99_s * 1e3 for r in found if r.ttft_p99_s],
                )
                cells = " | ".join(with_interval(column) for column in columns)
                print(f"| {variant.engine} | {variant.rows} | {cells} |")
    compare(rows)


def compare(rows: Sequence[Measured]) -> None:
    """The three ratios of the issue, as far as their parts were run."""

    def column(part: str, variant: Variant, field: str, load: float | None = None) -> list[float]:
        return [getattr(row, field) for row in chosen(rows, part, variant, load)]

    if any(row.part == "short" for row in rows):
        sixteen, one = (column("short", Variant("static", n), "requests_per_s") for n in (16, 1))
        print(f"\nshort prompts, static batch 16 against 1: {ratio(sixteen, one)}")
    if any(row.part == "mixed" for row in rows):
        static, joined = best(rows, "mixed", "static"), best(rows, "mixed", "continuous")
        for field in ("requests_per_s", "ttft_p99_s"):
            print(
                f"mixed, backlog, continuous {joined.rows} against static {static.rows}, {field}: "
                + ratio(column("mixed", joined, field), column("mixed", static, field))
            )
        for load in sorted({row.load for row in rows if row.load is not None}):
            waits_s = {
                variant: column("poisson", variant, "ttft_p99_s", load)
                for variant in ENGINES
                if chosen(rows, "poisson", variant, load)
            }
            quickest = min(
                (variant for variant in waits_s if variant.engine == "static"),
                key=lambda variant: np.mean(waits_s[variant]),
            )
            print(
                f"poisson at {load}, continuous {joined.rows} against the static batch whose "
                f"ttft_p99_s is least, {quickest.rows}: {ratio(waits_s[joined], waits_s[quickest])}"
            )


def load_model(name: str) -> LanguageModel:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
    assert isinstance(node, dict)
    values = {str(key): value for key, value in node.items()}
    model: LanguageModel = build({**values, "precision": "fp32"}, "model").load()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(NUM_REQUESTS), choices=NUM_REQUESTS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--requests", type=int, help=f"of a backlog; without it {NUM_REQUESTS}")
    parser.add_argument("--seed", type=int, default=0)
    results = Path(__file__).parent / "results" / "engines.csv"
    parser.add_argument("--out", type=Path, default=results)
    arguments = parser.parse_args()
    if "poisson" in arguments.parts and "mixed" not in arguments.parts:
        parser.error("--parts poisson needs mixed, whose throughput its load is a share of")
    torch.set_num_threads(1)
    rows: list[Measured] = []
    for name in arguments.models:
        num_requests = arguments.requests or NUM_REQUESTS[name]
        study = Study(name, load_model(name), arguments.repeats, num_requests, arguments.seed)
        for part in PARTS:
            if part in arguments.parts:
                getattr(study, part)()
        report(name, study.rows)
        rows += study.rows
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
