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
from capibench.index.metric import Metric
from capibench.index.optimizer.arguments import (
    Filter,
    Numbers,
    as_allowed,
    as_ids,
    as_queries,
    as_query,
    as_serving,
    as_vectors,
)
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
from capibench.index.stored_index import as_whole
from capibench.index.tuner.candidates import built, check_arms
from capibench.index.vector_store import VectorStore, VectorType
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
        if indices_dir is not None and not isinstance(indices_dir, str | Path):
            raise ConfigError("indices_dir", f"got {indices_dir!r}; expected a path")
        self.indices_dir = Path(indices_dir or home() / "indices").expanduser().resolve()
        self._k, self._serving = as_serving(k, metric, vectors_dtype, batch_size, max_deleted_share)
        self._keeper = Keeper(self.indices_dir, self._serving.max_batch_size)
        self._lock = threading.RLock()

    def build_optimized_index(
        self,
        vectors: Numbers,
        index_name: str,
        strategy: OptimizationStrategy = OptimizationStrategy.BALANCED,
        custom_config: Mapping[str, Any] | None = None,
        ids: Ids | Sequence[int] | None = None,
        *,
        queries: Numbers | None = None,
        documents: Sequence[str] | None = None,
        metadata: Mapping[str, Sequence[Value]] | None = None,
    ) -> str:
        """Choose an index by measurement, build it, and save it.

        Args:
            vectors: [n, d] numbers, kept and compared as float32 (or the `vectors_dtype`).
            index_name: letters, digits, "_", "-", "."; no other index has it.
            strategy: what the index is chosen for.
            custom_config: values in place of the strategy's own (`conf/index_tuning`);
                `index_type` allows one `IndexType` only.
            ids: [n] unique integers, at least 0; default: 0 to n - 1.
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
        metric, dtype = self._serving.metric, self._serving.vectors_dtype
        vectors = as_vectors("vectors", vectors)
        ids = np.arange(len(vectors)) if ids is None else as_ids("ids", ids)
        VectorStore.of(vectors, ids, metric, dtype)  # refuses what would fail after tuning only
        queries = as_queries(queries, vectors.shape[1], metric)
        check_arms(tuning_of(settings).arms(), self._serving, "custom_config.candidates")
        fields = None if metadata is None else Metadata(ids, metadata)
        texts = documents_of(ids, documents)
        with self._lock, self._keeper.locked(index_name) as folder:
            if self._keeper.folders.exists(index_name):
                raise ConfigError(
                    "index_name", f"got {index_name!r}, which is there already; expected a new name"
                )
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
        query_vector: Numbers,
        index_name: str,
        k: int = 10,
        filter: Filter | None = None,  # noqa: A002
    ) -> SearchResult:
        """The k nearest of one query [d].

        Args:
            query_vector: [d] numbers.
            index_name: of a kept index.
            k: at most the number of vectors.
            filter: ids that may be found, or conditions on metadata (`metadata.Metadata.select`).
                Fewer than k results where it allows fewer.

        Raises:
            ConfigError: no such index. DataError: it is damaged.
            ValueError: query, k or filter is wrong.
        """
        query = as_query("query_vector", query_vector)
        return self._searched("query_vector", query, index_name, k, filter)[0]

    def search_batch(
        self,
        query_vectors: Numbers,
        index_name: str,
        k: int = 10,
        filter: Filter | None = None,  # noqa: A002
    ) -> list[SearchResult]:
        """The k nearest of each of [m, d] queries, searched together; as `search`."""
        queries = as_vectors("query_vectors", query_vectors)
        return self._searched("query_vectors", queries, index_name, k, filter)

    def _searched(
        self, name: str, queries: Vectors, index_name: str, k: int, wanted: Filter | None
    ) -> list[SearchResult]:
        """Errors call the queries `name`."""
        k = as_whole("k", k)
        with self._lock:
            kept = self._keeper.open(index_name)
            kept.index.store.comparable(queries, name)
            allowed = as_allowed(kept, wanted)
            begin_s = perf_counter()
            found, scores = kept.index.search(queries, k, allowed)
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
        vectors: Numbers,
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
        taken, added = as_vectors("vectors", vectors), as_ids("ids", ids)
        with self._lock, self._keeper.changing(index_name) as kept:
            kept.add(taken, added, documents, metadata)
        self._keeper.counts[index_name].added += len(added)

    def delete(self, index_name: str, ids: Ids | Sequence[int]) -> None:
        """Delete vectors by id and save the index; as `add`."""
        removed = as_ids("ids", ids)
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
        self, names: Sequence[str], test_vectors: Numbers, num_queries: int | None = None
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
        asked = as_vectors("test_vectors", test_vectors)
        if num_queries is not None:
            num_queries = as_whole("num_queries", num_queries)
        if isinstance(names, str) or len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"names: got {names!r}; expected a list of two or more, each once")
        with self._lock:
            opened = {name: self._keeper.open(name) for name in names}
            return compare(opened, asked, num_queries)

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
