"""BM25 over the passages: the lexical yardstick beside which every retrieval figure stands."""

from __future__ import annotations

import logging

import bm25s

from capibench.corpus.corpus import Corpus

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every index it builds


def hit_rate(corpus: Corpus, k: int) -> tuple[float | None, int]:
    """Share of held-out questions for which a right passage is among BM25's first `k`, and n.

    Lucene's variant with its usual k1 and b (Kamphuis et al. 2020), as bm25s implements it.
    """
    questions = corpus.questions_in("heldout")
    if not questions:
        return None, 0
    retriever = bm25s.BM25()
    retriever.index(
        bm25s.tokenize([p.text for p in corpus.passages], show_progress=False),
        show_progress=False,
    )
    found, _ = retriever.retrieve(
        bm25s.tokenize([q.text for q in questions], show_progress=False),
        k=min(k, len(corpus.passages)),
        show_progress=False,
    )
    hits = [
        any(corpus.passages[position].id in question.relevant for position in row)
        for question, row in zip(questions, found, strict=True)
    ]
    return sum(hits) / len(hits), len(hits)
