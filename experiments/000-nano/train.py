"""Train the small language model that ships with the package, so that answers mean something.

Random weights have real speed but no quality: perplexity, answer scores and the damage done by
quantization would be noise. This script makes a Llama of 8.4 million parameters that has learnt
one honest task on two CPU cores: the question describes a Python object, the answer names it with
its signature, and both stand in the prompt's passages if retrieval did its work.

    python experiments/000-nano/train.py prepare  --work DIR   # text, tokenizer, token ids
    python experiments/000-nano/train.py train    --work DIR   # checkpoints in DIR
    python experiments/000-nano/train.py export   --work DIR   # DIR's checkpoint -> model folder
    python experiments/000-nano/train.py evaluate --work DIR   # the model card's table

The schedule is warm-up, constant, decay. Its end may be settled while it runs: write a step number
into DIR/decay_at, and from there the rate falls to zero over `decay_steps`. What was really done is
written to recipe.json beside the weights, and `train --recipe recipe.json` does it again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch
from nano_model import END_ID, PAD_ID, Nano, Recipe, to_transformers
from nano_scores import copied_first, perplexity, score
from nano_text import PAD_TAG, Rows, pick, prepare
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from capibench.prompt.tagged import ANSWER_TAG, END_TAG, PASSAGE_TAG, QUESTION_TAG


def optimizers(model: Nano, r: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest; or AdamW for all."""
    matrices = [p for n, p in model.blocks.named_parameters() if p.dim() == 2]
    others = [p for n, p in model.blocks.named_parameters() if p.dim() < 2] + [model.norm]
    if r.optimizer == "adamw":
        return [
            torch.optim.AdamW(
                [
                    {"params": [*matrices, model.embed.weight], "weight_decay": r.weight_decay},
                    {"params": others, "weight_decay": 0.0},
                ],
                lr=r.peak_rate,
                betas=(0.9, 0.95),
                fused=True,
            )
        ]
    return [
        torch.optim.Muon(
            matrices,
            lr=r.peak_rate,
            weight_decay=r.weight_decay,
            momentum=0.95,
            ns_steps=5,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": [model.embed.weight], "weight_decay": r.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=r.peak_rate,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def train(work: Path, r: Recipe, args: argparse.Namespace) -> None:
    torch.set_num_threads(r.threads)
    torch.manual_seed(r.seed)
    data = json.loads((work / "data.json").read_text())
    rows = Rows(data, work / "tokenizer.json", r)
    rng = torch.Generator().manual_seed(r.seed)
    model = Nano(r)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    opts = optimizers(model, r)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    stop_at: int | None = None
    step = phase_began = 0
    if args.resume:
        model.load_state_dict(torch.load(work / "model.pt", weights_only=True))
        step = json.loads((work / "recipe.json").read_text())["steps"]
        if step <= r.select_at:
            r.select_at = step
        else:
            r.ranked_at = step
    started = time.monotonic()
    last_log = last_save = started
    log_steps = 0
    means = np.zeros(4)
    while stop_at is None or step < stop_at:
        if step in (r.select_at, r.ranked_at):
            # As if resumed here, so that a training that was resumed can be run again in one go.
            phase_began = step
            opts = optimizers(model, r)
            seed = r.seed + (1 if step == r.select_at else 2)
            rows = Rows(data, work / "tokenizer.json", replace(r, seed=seed))
            rng.manual_seed(seed)
        control = work / "decay_at"
        if stop_at is None:
            if control.exists():
                r.decay_at = max(step, int(control.read_text()))
            if step >= r.decay_at:
                r.decay_at = step
                stop_at = step + r.decay_steps
        peak = r.peak_rate if step < r.select_at else r.select_rate
        rate = peak * min(1.0, (step - phase_began + 1) / r.warmup_steps)
        if stop_at is not None:
            rate *= (stop_at - step) / r.decay_steps
        ids, weights = rows.batch(step)
        positions, targets, w = pick(ids, weights, r.scored_tokens, rng)
        with torch.autocast("cpu", torch.bfloat16):
            losses = forward(ids[:, :-1].contiguous(), positions, targets, w)
        losses[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            for g in o.param_groups:
                g["lr"] = rate
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        log_steps += 1
        means += losses.detach().float().numpy()
        now = time.monotonic()
        if step <= 3 or now - last_log > 20:
            tokens = r.rows * r.row_tokens
            a = means / log_steps
            per_s = tokens * log_steps / (now - last_log)
            print(
                f"step {step} tokens {step * tokens / 1e6:.2f}M loss {a[0]:.3f} "
                f"answer {a[1]:.3f} text {a[2]:.3f} choice {a[3]:.3f} "
                f"rate {rate:.2e} {per_s:.0f} tok/s "
                f"min {(now - started) / 60:.1f}",
                flush=True,
            )
            last_log, log_steps, means = now, 0, np.zeros(4)
        if now - last_save > args.save_every_s or (stop_at is not None and step == stop_at):
            torch.save(model.state_dict(), work / "model.pt.tmp")
            (work / "model.pt.tmp").replace(work / "model.pt")
            (work / "recipe.json").write_text(
                json.dumps(
                    {
                        **asdict(r),
                        "steps": step,
                        "tokens": step * r.rows * r.row_tokens,
                        "minutes": round((now - started) / 60, 1),
                    },
                    indent=2,
                )
                + "\n"
            )
            hf = to_transformers(model, r)
            scores = score(hf, work, limit=96, kinds=("right", "three", "retrieved"), resamples=0)
            print(f"step {step} held-out " + json.dumps(scores), flush=True)
            last_save = last_log = time.monotonic()
            log_steps, means = 0, np.zeros(4)
    print(f"finished: {step} steps, {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def read_recipe(path: Path) -> Recipe:
    """What was really done, without the record of how long it took."""
    names = {field.name for field in fields(Recipe)}
    return Recipe(**{k: v for k, v in json.loads(path.read_text()).items() if k in names})


def export(work: Path, folder: Path) -> None:
    """Write the checkpoint as a model folder, after checking it against Transformers' Llama."""
    recipe = read_recipe(work / "recipe.json")
    model = Nano(recipe)
    model.load_state_dict(torch.load(work / "model.pt", weights_only=True))
    hf = to_transformers(model, recipe)
    ids = torch.arange(100, 164)[None]
    targets = torch.arange(101, 165)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model(ids, torch.arange(64), targets, torch.ones(64))[0]
        theirs = functional.cross_entropy(hf(ids).logits[0].float(), targets)
    assert abs(float(ours - theirs)) < 0.05, (ours, theirs)
    hf = hf.to(torch.bfloat16)
    hf.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, eos_token_id=END_ID, do_sample=False, max_new_tokens=64
    )
    hf.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        pad_token=PAD_TAG,
        eos_token=END_TAG,
        additional_special_tokens=[PASSAGE_TAG, QUESTION_TAG, ANSWER_TAG],
        padding_side="left",
        truncation_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text((work / "recipe.json").read_text())
    print(f"exported to {folder}")


def evaluate(work: Path, folder: Path, limit: int | None) -> None:
    """Print and store the model card's figures."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result = {
        **perplexity(hf, work),
        **score(hf, work, limit, ("right", "three", "retrieved", "wrong", "none"), resamples=5000),
        "copied_first": {k: copied_first(work, k) for k in ("three", "retrieved")},
    }
    print(json.dumps(result, indent=1, ensure_ascii=False))
    (work / "evaluation.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("prepare", "train", "export", "evaluate"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("capibench/model/nano"))
    parser.add_argument("--recipe", type=Path, help="recipe.json of a finished training")
    parser.add_argument("--resume", action="store_true", help="from DIR's checkpoint, next phase")
    parser.add_argument("--save-every-s", type=float, default=300.0)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="override the recipe"
    )
    args = parser.parse_args()
    recipe = read_recipe(args.recipe) if args.recipe else Recipe()
    for pair in args.set:
        key, _, value = pair.partition("=")
        setattr(recipe, key, type(getattr(recipe, key))(value))
    args.work.mkdir(parents=True, exist_ok=True)
    if args.command == "prepare":
        prepare(args.work, recipe)
    elif args.command == "train":
        train(args.work, recipe, args)
    elif args.command == "export":
        export(args.work, args.model)
    else:
        evaluate(args.work, args.model, args.limit)


if __name__ == "__main__":
    main()
