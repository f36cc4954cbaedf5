"""Measures the table by which the modeled engine states its time, on the real engine.

    python -m capibench.engine.calibrate                          # the shipped model, one thread
    python -m capibench.engine.calibrate --model llama_60m_shape --threads 2

Prints conf/engine/modeled.yaml to standard output and how well it fits to standard error. Run it
on a quiet machine; each figure is the median of `--repeats` batches.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import OmegaConf

from capibench.config import build, conf_dir
from capibench.engine.engine import Generation, GenerationRequest
from capibench.engine.transformers_static import TransformersStatic
from capibench.model.language_model import LanguageModel

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
PREFILL_TOKENS = (32, 64, 128, 256, 384)
NEW_TOKENS = 33  # 32 steps per batch


@dataclass(frozen=True)
class Calibration:
    """The fields of the modeled engine, and how far the measured prefills lie from its line."""

    base_s: float
    prefill_s_per_token: float
    decode_step_s: dict[int, float]
    chars_per_token: float
    worst_prefill_error: float  # relative


def texts() -> list[str]:
    """Documentation of the standard library: text of the kind that the shipped model serves."""
    return [
        inspect.getdoc(member) or ""
        for module in (argparse, asyncio, json, logging, statistics)
        for _, member in inspect.getmembers(module)
    ]


def fit_prefill(num_tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """`(base_s, s_per_token, worst relative error)` of the line that is best in relative error.

    The base is not below 0: a shape may be faster per token than a smaller one, never free.
    """
    x, y = np.asarray(num_tokens, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    columns = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    base, slope = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
    if base < 0:
        base, slope = 0.0, float(np.linalg.lstsq(columns[:, 1:], np.ones_like(y), rcond=None)[0][0])
    worst = float(np.max(np.abs((base + slope * x) / y - 1)))
    return float(base), float(slope), worst


async def calibrate(
    model: LanguageModel,
    *,
    rows: Sequence[int],
    prefill_tokens: Sequence[int],
    step_prompt_tokens: int,
    repeats: int,
) -> Calibration:
    """Measure prefill for every length and rows 1, 4 and 8; decode steps for every of `rows`."""
    engine = TransformersStatic(num_workers=1, kv_cache="native")
    await engine.start(model)
    longest = model.tokenizer.model_max_length  # in tokens, so never too long in characters
    pieces = [text[:longest] for text in texts()]
    ids = [i for t in pieces for i in model.tokenizer(t, add_special_tokens=False)["input_ids"]]
    chars_per_token = sum(map(len, pieces)) / len(ids)

    async def batch(
        num_rows: int, prompt_tokens: int, new_tokens: int
    ) -> tuple[float, list[Generation]]:
        requests = [
            GenerationRequest(
                model.tokenizer.decode(ids[begin : begin + prompt_tokens]), new_tokens
            )
            for begin in range(0, num_rows * 97, 97)
        ]
        begin_s = asyncio.get_running_loop().time()
        return begin_s, await engine.generate(requests, worker=0)

    try:
        await batch(2, step_prompt_tokens, 4)  # first calls are slower
        sizes: list[int] = []
        prefills_s: list[float] = []
        for num_rows in (1, 4, 8):
            for prompt_tokens in prefill_tokens:
                taken = []
                for _ in range(repeats):
                    begin_s, answers = await batch(num_rows, prompt_tokens, 1)
                    taken.append(answers[0].first_token_s - begin_s)
                sizes.append(num_rows * max(answer.prompt_tokens for answer in answers))
                prefills_s.append(statistics.median(taken))
        steps_s = {}
        for num_rows in rows:
            taken = []
            for _ in range(repeats):
                _, answers = await batch(num_rows, step_prompt_tokens, NEW_TOKENS)
                span_s = answers[0].last_token_s - answers[0].first_token_s
                taken.append(span_s / (NEW_TOKENS - 1))
            steps_s[num_rows] = statistics.median(taken)
    finally:
        await engine.stop()
    base_s, slope, worst = fit_prefill(sizes, prefills_s)
    return Calibration(base_s, slope, steps_s, chars_per_token, worst)


def render(calibration: Calibration, measured_on: str) -> str:
    """`calibration` as conf/engine/modeled.yaml."""
    steps = "\n".join(
        f"  {rows}: {step_s:.6f}" for rows, step_s in calibration.decode_step_s.items()
    )
    return f"""\
# States the time of transformers_static instead of running it (for time=virtual); no text.
# Measured with `python -m capibench.engine.calibrate`:
# {measured_on}.
_target_: capibench.engine.modeled.Modeled
num_workers: 1 # independent workers, each as fast as the one measured
base_s: {calibration.base_s:.6f} # of a batch, besides its tokens
# Times the rows of a batch, times the tokens of its longest prompt. Measured prefills lie within
# {calibration.worst_prefill_error:.0%} of this line.
prefill_s_per_token: {calibration.prefill_s_per_token:.9f}
decode_step_s: # rows alive: seconds per step; linear between, in proportion beyond the last
{steps}
chars_per_token: {calibration.chars_per_token:.2f} # of prompts, in the measured model's tokens
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="nano", help="a choice of conf/model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=256, help="context of decode steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{arguments.model}.yaml"))
    assert isinstance(node, dict)
    model: LanguageModel = build({str(k): v for k, v in node.items()}, "model").load()
    calibration = asyncio.run(
        calibrate(
            model,
            rows=ROWS,
            prefill_tokens=PREFILL_TOKENS,
            step_prompt_tokens=arguments.prompt_tokens,
            repeats=arguments.repeats,
        )
    )
    measured_on = (
        f"{arguments.model}, {model.dtype}, {model.module.device}, {arguments.threads} thread(s), "
        f"decode at {arguments.prompt_tokens} tokens of context, torch {torch.__version__}"
    )
    sys.stdout.write(render(calibration, measured_on))
    sys.stderr.write(f"worst prefill error of the line: {calibration.worst_prefill_error:.1%}\n")


if __name__ == "__main__":
    main()
