"""Which texts share words with a query: the side of a hybrid search that vectors do not see.

bm25s, the yardstick of every report, scores a corpus that never changes. This one keeps the term
counts, so that texts can join and leave; its scores are those of bm25s (a test says so). Words are
split by bm25s' tokenizer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import numpy.typing as npt

from capibench.embedder.embedder import Vectors
from capibench.errors import DataError
from capibench.index.index import Ids

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces everything it does

Counts = npt.NDArray[np.int32]


class LexicalIndex:
    """BM25 in Lucene's variant (Kamphuis et al., "Which BM25 Do You Mean?", ECIR 2020) over rows
    of text."""

    def __init__(self, k1: float, b: float) -> None:
        self._k1, self._b = k1, b
        self._terms: dict[str, int] = {}
        # Distinct terms of all texts one after the other, how often each occurs, and how many
        # each text has.
        self._term_ids: Counts = np.empty(0, dtype=np.int32)
        self._counts: Counts = np.empty(0, dtype=np.int32)
        self._num_distinct: Counts = np.empty(0, dtype=np.int32)
        self._lengths: Counts = np.empty(0, dtype=np.int32)  # in words, repetitions counted
        self._postings: tuple[Ids, Ids, Vectors] | None = None

    @property
    def num_rows(self) -> int:
        return len(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes of the counts and of the weights made from them, without the words."""
        counted = (self._term_ids, self._counts, self._num_distinct, self._lengths)
        num_bytes = sum(array.nbytes for array in counted)
        return num_bytes + sum(array.nbytes for array in self._weighted())

    def add(self, texts: Sequence[str]) -> None:
        """Give the next rows to `texts`."""
        term_ids: list[int] = []
        counts: list[int] = []
        num_distinct, lengths = [], []
        for words in _words(texts):
            counted = Counter(words)
            term_ids += [self._terms.setdefault(word, len(self._terms)) for word in counted]
            counts += counted.values()
            num_distinct.append(len(counted))
            lengths.append(len(words))
        self._term_ids = _longer(self._term_ids, term_ids)
        self._counts = _longer(self._counts, counts)
        self._num_distinct = _longer(self._num_distinct, num_distinct)
        self._lengths = _longer(self._lengths, lengths)
        self._postings = None

    def keep(self, rows: Ids) -> None:
        """Forget all rows but these, which are numbered anew in their order (ascending)."""
        kept = np.zeros(self.num_rows, dtype=np.bool_)
        kept[rows] = True
        entries = np.repeat(kept, self._num_distinct)
        self._term_ids, self._counts = self._term_ids[entries], self._counts[entries]
        self._num_distinct, self._lengths = self._num_distinct[kept], self._lengths[kept]
        self._postings = None

    def scores(self, text: str) -> Vectors:
        """[num_rows] BM25 of `text` with each row; 0 where they share no word."""
        begins, rows, weights = self._weighted()
        scores = np.zeros(self.num_rows, dtype=np.float32)
        for word in _words([text])[0]:
            term = self._terms.get(word)
            if term is not None:
                part = slice(begins[term], begins[term + 1])
                scores[rows[part]] += weights[part]  # a row occurs once in a term's list
        return scores

    def write(self, path: Path) -> None:
        """Write one .npz file."""
        words = "\n".join(self._terms).encode("utf-8")
        with path.open("wb") as file:
            np.savez(
                file,
                words=np.frombuffer(words, dtype=np.uint8),
                term_ids=self._term_ids,
                counts=self._counts,
                num_distinct=self._num_distinct,
                lengths=self._lengths,
            )

    def read(self, path: Path) -> None:
        """Become what `write` wrote.

        Raises:
            DataError: the file is not such a one.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = arrays["words"].tobytes().decode("utf-8")
                self._terms = {word: i for i, word in enumerate(words.split("\n")) if word}
                self._term_ids, self._counts = arrays["term_ids"], arrays["counts"]
                self._num_distinct, self._lengths = arrays["num_distinct"], arrays["lengths"]
        except (ValueError, KeyError, OSError) as error:
            raise DataError(f"{path}: no word counts: {error}") from error
        self._postings = None

    def _weighted(self) -> tuple[Ids, Ids, Vectors]:
        """Where each term's list begins, and of all lists the rows and the weights."""
        if self._postings is None:
            order = np.argsort(self._term_ids, kind="stable")
            occurs_in = np.bincount(self._term_ids, minlength=len(self._terms))
            begins = np.concatenate([[0], np.cumsum(occurs_in)]).astype(np.int64)
            rows = np.repeat(np.arange(self.num_rows), self._num_distinct)[order]
            rarity = np.log1p((self.num_rows - occurs_in + 0.5) / (occurs_in + 0.5))
            counts = self._counts[order]
            relative = self._lengths / max(float(self._lengths.mean()), 1e-9)
            damping = self._k1 * (1 - self._b + self._b * relative[rows])
            weights = rarity[self._term_ids[order]] * counts / (damping + counts)
            self._postings = begins, rows, weights.astype(np.float32)
        return self._postings


def _words(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
    return words


def _longer(array: Counts, further: Sequence[int]) -> Counts:
    return np.concatenate([array, np.array(further, dtype=np.int32)])
