"""Indexes from Python, without the command line: build by measurement, keep, search, change.

    from capibench.index import OptimizationStrategy, RAGIndexOptimizer

    optimizer = RAGIndexOptimizer(indices_dir="indices")
    name = optimizer.build_optimized_index(vectors, "docs", OptimizationStrategy.BALANCED)
    result = optimizer.search(query, name, k=5)

It decides nothing itself: which index is built the tuner decides, structures are those of
`conf/index`. What it adds is that everything of an index is kept together, under a version, and
changed as a whole or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np

from capibench.artifacts import home
from capibench.embedder.embedder import Vectors
from capibench.errors import ConfigError
from capibench.index.index import Ids
from capibench.index.metadata import Metadata, Value
from capibench.index.metric import Metric, check_vectors
from capibench.index.optimizer.arguments import Filter, as_allowed, as_ids, as_queries
from capibench.index.optimizer.choosing import choose
from capibench.index.optimizer.comparing import compare
from capibench.index.optimizer.counts import statistics
from capibench.index.optimizer.exam import Contents
from capibench.index.optimizer.keeper import Keeper
from capibench.index.optimizer.kept import Kept, Provenance, documents_of
from capibench.index.optimizer.names import OptimizationStrategy, OptimizationType
from capibench.index.optimizer.noting import note_choice
from capibench.index.optimizer.results import (
    IndexComparison,
    IndexInfo,
    OptimizationResult,
    SearchResult,
)
from capibench.index.optimizer.settings import checked, settings_of, tuning_of
from capibench.index.optimizer.telling import info_of
from capibench.index.tuner.candidates import Serving, built
from capibench.index.vector_store import VectorType, check_ids
from capibench.run_folder import utc_now


class RAGIndexOptimizer:
    """All indexes of one folder. Threads may share it: one call works at a time. So may processes
    (a change takes the index's lock, and is seen by others at their next call).

    Args:
        indices_dir: where indexes are kept; default: `indices` in the CapiBench home
            (`$CAPIBENCH_HOME`, or `outputs` in the working folder).
        metric: of new indexes: cosine, ip (inner product) or l2.
        vectors_dtype: of the exact vectors of new indexes: float32 or float16.
        k: results per query for which new indexes are tuned.
        batch_size: queries searched at once, for which new indexes are tuned and all are timed.
            Threads are those that FAISS is set to.
        max_deleted_share: an index is compacted once more than this share of it was deleted.
    """

    def __init__(
        self,
        indices_dir: str | Path | None = None,
        *,
        metric: str = "cosine",
        vectors_dtype: VectorType = "float32",
        k: int = 10,
        batch_size: int = 1,
        max_deleted_share: float = 0.2,
    ) -> None:
        for name, value in (("k", k), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(name, f"got {value}; expected at least 1")
        if vectors_dtype not in ("float32", "float16"):
            raise ConfigError("vectors_dtype", f"got {vectors_dtype!r}; expected float32, float16")
        self.indices_dir = Path(indices_dir or home() / "indices").expanduser().resolve()
        self._serving = Serving(
            batch_size, checked(Metric, metric, "metric"), vectors_dtype, max_deleted_share
        )
        self._k = k
        self._keeper = Keeper(self.indices_dir, batch_size)
        self._lock = threading.RLock()

    def build_optimized_index(
        self,
        vectors: Vectors,
        index_name: str,
        strategy: OptimizationStrategy = OptimizationStrategy.BALANCED,
        custom_config: Mapping[str, Any] | None = None,
        ids: Ids | Sequence[int] | None = None,
        *,
        queries: Vectors | None = None,
        documents: Sequence[str] | None = None,
        metadata: Mapping[str, Sequence[Value]] | None = None,
    ) -> str:
        """Choose an index by measurement, build it, and save it.

        Args:
            vectors: [n, d] float32.
            index_name: letters, digits, "_", "-", "."; no other index has it.
            strategy: what the index is chosen for.
            custom_config: values in place of the strategy's own (`conf/index_tuning`);
                `index_type` allows one `IndexType` only.
            ids: [n] unique, at least 0; default: 0 to n - 1.
            queries: [m, d] real queries, m at least 2; default: some vectors are held out while
                the index is chosen, and are in the index that is saved.
            documents: [n] texts that searches give back.
            metadata: field → [n] values, by which searches can be filtered.

        Returns:
            `index_name`.

        Raises:
            ConfigError: strategy, custom_config or name is wrong.
            ValueError: vectors, ids, queries, documents or metadata are wrong. Nothing is saved.
        """
        strategy = checked(OptimizationStrategy, strategy, "strategy")
        settings = settings_of(strategy, custom_config)
        check_vectors("vectors", vectors)
        ids = as_ids(ids, len(vectors))
        check_ids(ids, len(vectors))
        fields = None if metadata is None else Metadata(ids, metadata)
        texts = documents_of(ids, documents)
        with self._lock, self._keeper.locked(index_name) as folder:
            if self._keeper.folders.exists(index_name):
                raise ConfigError(
                    "index_name", f"got {index_name!r}, which is there already; expected a new name"
                )
            queries = as_queries(queries, vectors)
            contents = Contents(ids, vectors)
            chosen = choose(tuning_of(settings), contents, queries, self._k, self._serving, None)
            index = built(chosen.node)
            index.build(vectors, ids)
            now = utc_now()
            provenance = Provenance(
                name=index_name,
                version=0,
                strategy=strategy.value,
                family="",
                tuning=settings,
                tuned=None,
                k=self._k,
                recall=None,
                recall_k=None,
                num_checked=len(ids),
                num_changed=0,
                created_at=now,
                updated_at=now,
            )
            kept = Kept(index, provenance, queries, texts, fields, [], 0, ())
            note_choice(kept, chosen)
            self._keeper.save(kept, folder)
            counts = self._keeper.counts[index_name]
            counts.builds += 1
            counts.tuning_s += 0.0 if chosen.tuned is None else chosen.tuned.seconds
        return index_name

    def search(
        self,
        query_vector: Vectors,
        index_name: str,
        k: int = 10,
        filter: Filter | None = None,  # noqa: A002
    ) -> SearchResult:
        """The k nearest of one query [d].

        Args:
            query_vector: [d] float32.
            index_name: of a kept index.
            k: at most the number of vectors.
            filter: ids that may be found, or conditions on metadata (`metadata.Metadata.select`).
                Fewer than k results where it allows fewer.

        Raises:
            ConfigError: no such index. DataError: it is damaged.
            ValueError: query, k or filter is wrong.
        """
        query = np.asarray(query_vector)
        if query.ndim != 1:
            raise ValueError(f"query_vector: got shape {query.shape}; expected [dimension]")
        return self.search_batch(query[None], index_name, k, filter)[0]

    def search_batch(
        self,
        query_vectors: Vectors,
        index_name: str,
        k: int = 10,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[SearchResult]:
        """The k nearest of each of [m, d] queries, searched together; as `search`."""
        with self._lock:
            kept = self._keeper.open(index_name)
            allowed = as_allowed(kept, filter)
            begin_s = perf_counter()
            found, scores = kept.index.search(np.asarray(query_vectors), k, allowed)
            elapsed_s = perf_counter() - begin_s
            counts = self._keeper.counts[index_name]
            counts.searches, counts.queries = counts.searches + 1, counts.queries + len(found)
            counts.search_s += elapsed_s
            offset = 1.0 if kept.index.metric is Metric.COSINE else 0.0
            results = []
            for row, row_scores in zip(found.tolist(), scores.tolist(), strict=True):
                pairs = [(i, offset - s) for i, s in zip(row, row_scores, strict=True) if i >= 0]
                facts = {
                    "k": k,
                    "index_type": kept.provenance.family,
                    "index_version": kept.provenance.version,
                    "num_vectors": kept.index.num_vectors,
                    "batch_size": len(found),
                    "documents": kept.texts([i for i, _ in pairs]),
                }
                each_ms = elapsed_s / len(found) * 1e3
                results.append(SearchResult(str(uuid4()), pairs, each_ms, index_name, facts))
            return results

    def add(
        self,
        index_name: str,
        vectors: Vectors,
        ids: Ids | Sequence[int],
        *,
        documents: Sequence[str] | None = None,
        metadata: Mapping[str, Sequence[Value]] | None = None,
    ) -> None:
        """Add [m, d] vectors under new ids and save the index: many at once are much cheaper than
        one by one. Where the strategy has a `recheck_share`, recall may be measured again and the
        index tuned again, which takes as long as building it.

        Raises:
            ConfigError, DataError: as `search`.
            ValueError: something does not fit. The index is as it was.
        """
        added = as_ids(ids, len(vectors))
        with self._lock, self._keeper.changing(index_name) as kept:
            kept.add(vectors, added, documents, metadata)
        self._keeper.counts[index_name].added += len(added)

    def delete(self, index_name: str, ids: Ids | Sequence[int]) -> None:
        """Delete vectors by id and save the index; as `add`."""
        removed = as_ids(ids, 0)
        with self._lock, self._keeper.changing(index_name) as kept:
            kept.remove(removed)
        self._keeper.counts[index_name].deleted += len(removed)

    def load_index(self, index_name: str) -> IndexInfo:
        """Read an index from the disk, every byte checked, before the first search needs it.

        Raises:
            ConfigError: no such index. DataError: it is damaged, half written, or of another
                version.
        """
        with self._lock:
            self._keeper.folders.forget(index_name)
            return info_of(self._keeper.open(index_name))

    def optimize_index(
        self,
        index_name: str,
        optimization_type: OptimizationType = OptimizationType.TUNE,
        *,
        custom_config: Mapping[str, Any] | None = None,
    ) -> OptimizationResult:
        """Tune, rebalance or compress an index, and save it if that made it better.

        `custom_config` holds for this one time; see `build_optimized_index`.

        Raises:
            ConfigError: no such index, or no such type. DataError: it is damaged.
            ValueError: it has too few vectors to measure anything.
        """
        kind = checked(OptimizationType, optimization_type, "optimization_type")
        with self._lock, self._keeper.locked(index_name) as folder:
            result = self._keeper.optimized(index_name, folder, kind, custom_config)
            self._keeper.counts[index_name].optimizations += 1
            self._keeper.counts[index_name].improvements += result.changed
            return result

    def compare_indices(
        self, names: Sequence[str], test_vectors: Vectors, num_queries: int | None = None
    ) -> IndexComparison:
        """Indexes of the same vectors on the same queries, timed side by side.

        Args:
            names: at least two.
            test_vectors: [m, d] queries; those that are themselves in the indexes are left out.
            num_queries: at most so many of them; None: all.

        Raises:
            ConfigError: no such index. DataError: one is damaged.
            ValueError: fewer than two names, or one twice, indexes of different vectors, or no
                query left.
        """
        with self._lock:
            opened = {name: self._keeper.open(name) for name in names}
            if len(opened) != len(names) or len(names) < 2:
                raise ValueError(f"names: got {list(names)}; expected two or more, each once")
            return compare(opened, test_vectors, num_queries)

    def get_index_info(self, index_name: str) -> IndexInfo:
        """What an index is, why, and what was measured of it; as `search`."""
        with self._lock:
            return info_of(self._keeper.open(index_name))

    def get_measurements(self, index_name: str) -> list[dict[str, Any]]:
        """Every point that the tuner measured when it last chose the index; JSON."""
        with self._lock:
            return list(self._keeper.open(index_name).points)

    def list_indices(self) -> list[str]:
        """Names of all kept indexes."""
        return self._keeper.folders.names()

    def delete_index(self, index_name: str) -> None:
        """Delete an index from the disk.

        Raises:
            ConfigError: no such index.
        """
        with self._lock, self._keeper.locked(index_name):
            self._keeper.folders.remove(index_name)

    def get_optimizer_stats(self) -> dict[str, Any]:
        """What was done through this object, and what the folder holds; JSON."""
        with self._lock:
            return {
                **statistics(self._keeper.counts),
                "num_indices": len(self._keeper.folders.names()),
                "disk_bytes": self._keeper.folders.num_bytes(),
            }
