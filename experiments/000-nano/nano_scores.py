"""What the model can do on modules that it has never seen, with intervals."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nano_model import END_ID, PAD_ID
from nano_text import PROMPT, nearest, normalise
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

from capibench.corpus.pydocs import DocObject
from capibench.model.answers import exact_match, token_f1


@dataclass
class Case:
    """One held-out question under each kind of context."""

    question: str
    answer: str
    passages: dict[str, list[str]]


def cases(work: Path, limit: int | None) -> list[Case]:
    """Held-out questions by the corpus's strict filter, with their passages for each condition."""
    objects = [DocObject(**o) for o in json.loads((work / "heldout.json").read_text())]
    uses = Counter(normalise(o.summary) for o in objects)
    objects = [o for o in objects if o.body]
    texts = [f"{o.head}\n{o.body}" for o in objects]
    asked = [
        i
        for i, o in enumerate(objects)
        if 5 <= len(o.summary.split()) <= 40
        and len(o.body) >= 80
        and uses[normalise(o.summary)] == 1
        and normalise(o.summary).rstrip(".") not in normalise(texts[i])
    ]
    near = nearest(texts, [objects[i].summary for i in asked])
    rng = random.Random(1)
    out = []
    for i, found in zip(asked, near, strict=True):
        distractors = [texts[j] for j in found if j != i and objects[j].body != objects[i].body][:2]
        three = [texts[i], *distractors]
        rng.shuffle(three)
        ranked = [texts[j] for j in found[:3]]
        while True:
            wrong = rng.randrange(len(objects))
            if objects[wrong].module != objects[i].module:
                break
        out.append(
            Case(
                objects[i].summary,
                objects[i].head,
                {
                    "right": [texts[i]],
                    "three": three,
                    "retrieved": ranked,
                    "wrong": [texts[wrong]],
                    "none": [],
                },
            )
        )
    rng.shuffle(out)
    return out[:limit]


def answers_of(hf: LlamaForCausalLM, tokenizer: Tokenizer, prompts: list[str]) -> list[str]:
    """Greedy answers as the pipeline reads them off, batched by length with left padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    for chunk in (order[i : i + 32] for i in range(0, len(order), 32)):
        encoded = [tokenizer.encode(prompts[i], add_special_tokens=False).ids for i in chunk]
        longest = max(map(len, encoded))
        ids = torch.tensor([[PAD_ID] * (longest - len(e)) + e for e in encoded])
        mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in encoded])
        with torch.no_grad():
            generated = hf.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=64,
                do_sample=False,
                pad_token_id=PAD_ID,
                eos_token_id=END_ID,
            )
        for i, row in zip(chunk, generated[:, longest:].tolist(), strict=True):
            out[i] = PROMPT.extract_answer(tokenizer.decode(row, skip_special_tokens=False))
    return out


def score(
    hf: LlamaForCausalLM, work: Path, limit: int | None, kinds: tuple[str, ...], resamples: int
) -> dict[str, Any]:
    """Exact match and token F1 by kind of context, with 95 % bootstrap intervals."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    table: dict[str, Any] = {}
    todo = cases(work, limit)
    for kind in kinds:
        prompts = [PROMPT.render(c.question, c.passages[kind]) for c in todo]
        said = answers_of(hf, tokenizer, prompts)
        f1 = np.array([token_f1(a, [c.answer]) for a, c in zip(said, todo, strict=True)])
        em = np.array([exact_match(a, [c.answer]) for a, c in zip(said, todo, strict=True)])
        table[kind] = {
            "f1": round(float(f1.mean()), 4),
            "em": round(float(em.mean()), 4),
            "n": len(todo),
        }
        if resamples:
            rng = np.random.default_rng(0)
            draws = rng.integers(0, len(todo), (resamples, len(todo)))
            for name, values in (("f1", f1), ("em", em)):
                low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
                table[kind][f"{name}_95"] = [round(float(low), 4), round(float(high), 4)]
            table[kind]["examples"] = [
                [c.question, c.answer, a] for a, c in list(zip(said, todo, strict=True))[:6]
            ]
    return table


def copied_first(work: Path, kind: str) -> dict[str, float]:
    """What a program would score that always answers with the first passage's first line."""
    todo = cases(work, None)
    said = [c.passages[kind][0].partition("\n")[0] for c in todo]
    return {
        "f1": round(
            float(np.mean([token_f1(a, [c.answer]) for a, c in zip(said, todo, strict=True)])), 4
        ),
        "em": round(
            float(np.mean([exact_match(a, [c.answer]) for a, c in zip(said, todo, strict=True)])),
            4,
        ),
        "right_among_them": round(
            float(np.mean([c.passages["right"][0] in c.passages[kind] for c in todo])), 4
        ),
    }


def perplexity(hf: LlamaForCausalLM, work: Path, window: int = 512) -> dict[str, Any]:
    """exp of the mean loss per token over held-out documents, each from its own beginning."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    objects = [DocObject(**o) for o in json.loads((work / "heldout.json").read_text())]
    losses: list[float] = []
    means: list[tuple[float, int]] = []
    for o in objects:
        if len(o.body) < 80:
            continue
        ids = torch.tensor(
            [tokenizer.encode(f"{o.head}\n{o.body}", add_special_tokens=False).ids[:window]]
        )
        with torch.no_grad():
            logits = hf(ids).logits[0, :-1].float()
            loss = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        losses += loss.tolist()
        means.append((float(loss.sum()), len(loss)))
    sums = np.array(means)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(sums), (2000, len(sums)))
    resampled = np.exp(sums[draws, 0].sum(1) / sums[draws, 1].sum(1))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {
        "perplexity": round(math.exp(float(np.mean(losses))), 3),
        "perplexity_95": [round(float(low), 3), round(float(high), 3)],
        "documents": len(means),
        "tokens": len(losses),
    }
