"""From vectors and held-out queries to an index chosen by measurement, within a time."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import faiss

from capibench.config import node_of
from capibench.embedder.embedder import Vectors
from capibench.index.stored_index import StoredIndex
from capibench.index.tuner.candidates import Serving, built, check_arms, node_of_arm
from capibench.index.tuner.laboratory import Workbench
from capibench.index.tuner.measured_features import measure_features
from capibench.index.tuner.tuned import Tuned
from capibench.index.tuning.budgeted import Budgeted
from capibench.index.tuning.halving import search
from capibench.index.tuning.points import Arm

_SHARE_TO_VERIFY = 0.05  # of the time, kept for verifying the pick
_SHARE_TO_TIME = 0.5  # of the time, at most, kept for timing the finalists side by side
_ROUND_S = 0.075  # that one round of one finalist takes at most, its first calls included
AS_CONFIGURED = "as configured"  # the family of an index that took part as it was


def tune(
    tuning: Budgeted,
    vectors: Vectors,
    tune_queries: Vectors,
    verify_queries: Vectors,
    k: int,
    serving: Serving,
    configured: StoredIndex | None,
    report: Callable[[str], None],
) -> Tuned:
    """Choose an index for `vectors`.

    Args:
        tuning: what is wanted, among what, in what time.
        vectors: [n, d] float32.
        tune_queries, verify_queries: [m, d] held-out queries, never database vectors, to search by
            and to verify on; at most `tuning.num_queries` of each are used.
        k: results per query.
        serving: how the index will be asked: batch size, metric. Threads are those that FAISS is
            set to.
        configured: an index that takes part beside the candidates, as it is; None: none.
        report: is told what is being done.

    Raises:
        ConfigError: a candidate cannot be configured so.
        ValueError: vectors or queries that cannot be compared, no queries, or nothing to be built.
    """
    begin_s = perf_counter()
    for name, queries in (("tune_queries", tune_queries), ("verify_queries", verify_queries)):
        if not len(queries):
            raise ValueError(f"{name}: got none; expected at least 1")
    if not 1 <= k <= len(vectors):
        raise ValueError(f"k: got {k}; expected 1 to the number of vectors, {len(vectors)}")
    check_arms(tuning.arms(), serving)
    halving = tuning.halving
    finish_s = min(
        halving.num_finalists * halving.num_rounds * _ROUND_S, tuning.tuning_s * _SHARE_TO_TIME
    )
    timed_by_s = begin_s + tuning.tuning_s * (1 - _SHARE_TO_VERIFY)
    deadline_s = timed_by_s - finish_s
    tune_queries = tune_queries[: tuning.num_queries]
    verify_queries = verify_queries[: tuning.num_queries]
    features = None
    if tuning.needs_features:
        report("looking at the vectors")
        features = measure_features(vectors, tune_queries, serving.metric, tuning.seed)
    plan = tuning.plan(features)
    nodes = {arm: node_of_arm(arm, serving) for arm in plan.arms}
    if configured is not None:
        nodes |= _configured(configured, nodes)
    workbench = Workbench(
        vectors,
        tune_queries,
        verify_queries,
        k,
        nodes,
        serving,
        deadline_s,
        timed_by_s,
        plan.preference.limits.min_recall,
        tuning.seed,
    )
    found = search(tuple(nodes), len(vectors), workbench, plan.preference, halving, report)
    chosen = found.verdict.chosen
    return Tuned(
        node={**nodes[chosen.arm], **chosen.query},
        found=found,
        features=features,
        plan_reasons=plan.reasons,
        preference=plan.preference,
        seconds=perf_counter() - begin_s,
        conditions={
            "k": k,
            "batch_size": serving.max_batch_size,
            "num_threads": faiss.omp_get_max_threads(),
            "num_vectors": len(vectors),
            "num_tune_queries": len(tune_queries),
            "num_verify_queries": len(verify_queries),
        },
    )


def _configured(index: StoredIndex, nodes: dict[Arm, dict[str, Any]]) -> dict[Arm, dict[str, Any]]:
    """The configured index as an arm of its own; none where a candidate builds the same."""
    same = index.build_params()
    if any(built(node).build_params() == same for node in nodes.values()):
        return {}
    return {Arm(AS_CONFIGURED, AS_CONFIGURED, ()): node_of(index)}
