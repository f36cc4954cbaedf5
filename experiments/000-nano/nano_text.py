"""The text that the shipped model learns from, and how a step's rows are drawn from it."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from nano_model import Recipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from capibench.corpus.corpus import split_of
from capibench.corpus.pydocs import DocObject, harvest, locate
from capibench.prompt.tagged import (
    ANSWER_TAG,
    END_TAG,
    PASSAGE_TAG,
    QUESTION_TAG,
    TaggedPrompt,
)

PAD_TAG = "<|pad|>"
SPECIALS = [PAD_TAG, PASSAGE_TAG, QUESTION_TAG, ANSWER_TAG, END_TAG]
PROMPT = TaggedPrompt(top_k=3, passage_chars=360)
HELDOUT_FRACTION = 0.25
MAX_HEAD_CHARS = 120
# How often the retriever's first, second and third passage is the right one, roughly.
RANK_WEIGHTS = (0.6, 0.25, 0.15)


def prepare(work: Path, recipe: Recipe) -> None:
    """Harvest, split by module, train the tokenizer, store token ids."""
    started = time.monotonic()
    train: list[DocObject] = []
    heldout: list[DocObject] = []
    code: list[str] = []
    rng = random.Random(recipe.seed)
    for source in locate(["stdlib", "installed"]):
        if source.package == "capibench":
            continue
        package = source.package
        for o in harvest(package, source.version, source.root, MAX_HEAD_CHARS):
            if split_of(o.module, HELDOUT_FRACTION) == "train":
                train.append(o)
            elif package == "stdlib":
                heldout.append(o)
        files = [] if source.root.is_file() else sorted(source.root.rglob("*.py"))
        for path in files:
            if "test" in path.as_posix().lower():
                continue
            parts = path.relative_to(source.root).with_suffix("").parts
            if "site-packages" in parts:
                continue
            module = ".".join(
                p for p in (source.package, *parts) if p not in ("stdlib", "__init__")
            )
            if split_of(module, HELDOUT_FRACTION) == "train" and rng.random() < 0.4:
                text = path.read_text(encoding="utf-8", errors="replace")
                begin = rng.randrange(max(1, len(text) - 3000))
                code.append(text[begin : begin + 3000])
    # Backports and vendored copies would carry held-out text into training.
    seen = {normalise(o.summary) for o in heldout} | {normalise(o.body) for o in heldout if o.body}
    unique: dict[tuple[str, str], DocObject] = {}
    for o in train:
        if normalise(o.summary) not in seen and normalise(o.body) not in seen:
            unique.setdefault((normalise(o.summary), normalise(o.body)), o)
    objects = list(unique.values())
    print(
        f"{len(train)} train objects, {len(objects)} kept, {len(heldout)} held out, "
        f"{len(code)} code chunks, {time.monotonic() - started:.0f} s",
        flush=True,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Heads weigh double: names and signatures are what the model has to write.
    sample = rng.sample(objects, min(len(objects), 40_000))
    tokenizer.train_from_iterator(
        [f"{o.head}\n{o.head}\n{o.summary}\n{o.body[:600]}" for o in sample] + code[:1500], trainer
    )
    tokenizer.save(str(work / "tokenizer.json"))

    askable = [o for o in objects if 3 <= len(o.summary.split()) <= 40]

    def encode(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

    data = {
        "heads": encode([o.head for o in askable]),
        "passages": encode([f"{o.head}\n{o.body}"[: PROMPT.passage_chars] + "\n" for o in askable]),
        "shorts": encode([f"{o.head}\n{o.body}"[: len(o.head) + 100] + "\n" for o in askable]),
        "questions": encode([o.summary + "\n" for o in askable]),
        "modules": [o.module for o in askable],
        "plain": encode([f"{o.head}\n{o.summary}\n\n{o.body}"[:1500] for o in objects if o.body]),
        "code": encode(code),
    }
    print(
        f"{len(askable)} askable; tokens: "
        + ", ".join(
            f"{k} {sum(map(len, v)) / max(1, len(v)):.0f}"
            for k, v in data.items()
            if k != "modules"
        )
        + f"; {time.monotonic() - started:.0f} s",
        flush=True,
    )
    data["near"] = nearest(
        [f"{o.head} {o.body[:300]}" for o in askable], [o.summary for o in askable]
    )
    (work / "data.json").write_text(json.dumps(data))
    (work / "heldout.json").write_text(json.dumps([asdict(o) for o in heldout]))
    print(f"prepared in {time.monotonic() - started:.0f} s", flush=True)


def normalise(text: str) -> str:
    """Text as it is compared: one space between words, no case."""
    return " ".join(text.split()).casefold()


def nearest(passages: list[str], questions: list[str], k: int = 8) -> list[list[int]]:
    """What a lexical retriever would return beside the right passage: the hard distractors."""
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    found, _ = retriever.retrieve(
        bm25s.tokenize(questions, show_progress=False), k=k, show_progress=False, n_threads=2
    )
    return found.tolist()


class Rows:
    """Rows of tokens with a loss weight per token, by a curriculum over the steps.

    Copying emerges abruptly and late when passages are long, so training begins with one short
    passage per question. Later one context of up to three passages is asked about each of them
    in turn: three supervised answers for the price of one context.
    """

    def __init__(self, data: dict[str, Any], tokenizer_path: Path, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rng = random.Random(recipe.seed)
        tok = Tokenizer.from_file(str(tokenizer_path))
        self.passage, self.question, self.answer, self.end = (
            tok.token_to_id(t) for t in (PASSAGE_TAG, QUESTION_TAG, ANSWER_TAG, END_TAG)
        )
        self.data = data
        self.count = len(data["heads"])
        by_module = defaultdict(list)
        for i, m in enumerate(data["modules"]):
            by_module[m].append(i)
        self.siblings = [by_module[m] for m in data["modules"]]
        self.order: list[int] = []

    def _next(self) -> int:
        if not self.order:
            self.order = list(range(self.count))
            self.rng.shuffle(self.order)
        return self.order.pop()

    def _distractors(self, i: int, n: int, near: float, sibling: float) -> list[int]:
        out: list[int] = []
        for _ in range(20):
            if len(out) == n:
                break
            u = self.rng.random()
            pool: list[int] | None = None
            if u < near:
                pool = self.data["near"][i]
            elif u < near + sibling:
                pool = self.siblings[i]
            j = self.rng.choice(pool) if pool else self.rng.randrange(self.count)
            if j != i and j not in out:
                out.append(j)
        return out

    def _asked(self, step: int) -> tuple[list[int], list[float]]:
        """One context with its questions and answers, and the weight of each token."""
        r, d, rng = self.recipe, self.data, self.rng
        i = self._next()
        near, sibling = 0.5, 0.25
        if step < r.short_steps:
            num, short = 1, 1.0
        elif step < r.medium_steps:
            num, short = rng.choice((1, 2, 3)), 0.85
        elif step < r.select_at:
            num, short = rng.choice((1, 2, 3, 3, 3)), 0.15
        elif step < r.select_at + r.select_short_steps:
            num, short = rng.choice((2, 3, 4, 5)), 1.0
            near, sibling = 0.2, 0.2
        else:
            num, short = rng.choice((1, 2, 3, 3, 3)), 0.15
            near, sibling = 0.4, 0.2
        if step >= r.short_steps and rng.random() < 0.03:
            num = 0  # no passage at all: the answer has to come from what was learnt
        chosen = [i, *self._distractors(i, num - 1, near, sibling)] if num else []
        rng.shuffle(chosen)
        texts = d["shorts"] if rng.random() < short else d["passages"]
        tokens: list[int] = []
        weights: list[float] = []
        for j in chosen:
            tokens += [self.passage, *texts[j]]
        weights += [1.0] * len(tokens)
        asked = chosen or [i]
        if len(asked) > 1:
            asked = rng.sample(asked, len(asked))
            if step >= r.ranked_at and len(chosen) <= len(RANK_WEIGHTS):
                # A retriever puts the better passages first: what is asked first is mostly there.
                first = rng.choices(chosen, RANK_WEIGHTS[: len(chosen)])[0]
                asked = [first, *(j for j in asked if j != first)]
        for j in asked:
            tokens += [self.question, *d["questions"][j], self.answer]
            weights += [0.5] * (len(tokens) - len(weights))
            begin = len(tokens)
            tokens += [*d["heads"][j], self.end]
            if step < r.select_at:
                weights += [r.answer_weight] * (len(tokens) - begin)
                continue
            weights += [r.select_answer_weight] * (len(tokens) - begin)
            for k in chosen:
                if k != j:
                    weights[begin + parting(d["heads"][j], d["heads"][k])] = r.select_weight
        return tokens, weights

    def _unasked(self) -> list[int]:
        pool = self.data["code"] if self.rng.random() < 0.35 else self.data["plain"]
        return [*self.rng.choice(pool), self.end]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        r = self.recipe
        length = r.row_tokens + 1
        ids = np.zeros((r.rows, length), dtype=np.int64)
        weights = np.zeros((r.rows, length), dtype=np.float32)
        plain_rows = 1 if step < r.medium_steps else 2
        for row in range(r.rows):
            tokens: list[int] = []
            w: list[float] = []
            while len(tokens) < length:
                if row < plain_rows:
                    t = self._unasked()
                    tw = [1.0] * len(t)
                else:
                    t, tw = self._asked(step)
                    # A context that does not fit would lose its answers: fill up with plain text.
                    if len(tokens) + len(t) > length and tokens:
                        t = self._unasked()
                        tw = [1.0] * len(t)
                tokens += t
                w += tw
            ids[row] = tokens[:length]
            weights[row] = w[:length]
        return torch.from_numpy(ids), torch.from_numpy(weights)


def parting(one: list[int], other: list[int]) -> int:
    """Where two answers part: the one token that says which passage is being copied."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return shared


def pick(ids: Tensor, weights: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Which positions are scored: every answer token, and others at random up to `count`."""
    w = weights[:, 1:].flatten()
    priority = torch.rand(w.shape, generator=rng) * (w > 0) + (w > 1)
    positions = priority.topk(count).indices
    return positions, ids[:, 1:].flatten()[positions], w[positions]
