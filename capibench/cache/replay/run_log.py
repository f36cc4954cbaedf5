"""The look-ups of a finished run as a key trace: what would another policy have done with them?

    query_result  one access per request: the whole answer
    embedding     one access per request: the question's vector
    mix           all three types in one cache, as in the pipeline: an answer that is found makes
                  the look-ups of vector and model output needless

Costs are the seconds that the stages of the request took, without waiting; a request that a cache
answered has those of the last one that was computed for the same key. Sizes are those of the RAM
tier without names and tags. An entry is taken to be stored when it was asked for, not when it was
ready.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

import capibench
from capibench.cache.keys import KEY_BYTES, CacheType
from capibench.cache.replay.trace import KeyTrace, Whole, make_trace
from capibench.cache.tiers.envelope import encode
from capibench.cache.tiers.l1 import OVERHEAD_BYTES
from capibench.errors import DataError
from capibench.records import Phase, RequestStatus

Wanted = Literal["query_result", "embedding", "mix"]
_TYPES = (CacheType.QUERY_RESULT, CacheType.EMBEDDING, CacheType.MODEL_OUTPUT)
_HIT = ("l1", "l2")
_COLUMNS = (
    "phase", "question_id", "status", "sent_s", "embed_s", "search_s", "prompt_s", "generate_s",
    "served_by", "result_cache", "embedding_cache", "prompt_tokens", "output_tokens",
    "max_new_tokens", "retrieved_ids", "answer",
)  # fmt: skip


def read_run(run_dir: Path, wanted: Wanted) -> KeyTrace:
    """The accesses of the run in `run_dir`, warm-up included.

    Raises:
        DataError: the folder holds no rows, or the run did not measure what is needed.
    """
    rows = _rows(run_dir)
    missing = [name for name in _COLUMNS if name not in rows]
    if missing:
        raise DataError(
            f"{run_dir}: no columns {', '.join(missing)} in its rows; expected those of a run of "
            f"this version ({capibench.__version__})"
        )
    document = _document(run_dir)
    answered = rows[rows["status"] == RequestStatus.OK.value].sort_values("sent_s", kind="stable")
    seconds = _seconds(answered)
    known = seconds.notna().all(axis=1).to_numpy()
    if not known.any():
        raise DataError(f"{run_dir}: no answered request whose stages were measured")
    requests, seconds = answered[known], seconds[known]
    num_left_out = len(rows) - len(requests)
    left_out = None
    if num_left_out:
        left_out = f"{num_left_out} of {len(rows)} requests: not answered, or never computed here"
    ttl_s = (document["config"].get("cache") or {}).get("ttl_s")
    budget = requests["max_new_tokens"].astype(str)
    question = requests["question_id"].astype(str)
    passages = requests["retrieved_ids"].map(lambda ids: "\x1f".join(map(str, ids)))
    key_names = {
        CacheType.QUERY_RESULT: "r\x1f" + question + "\x1f" + budget,
        CacheType.EMBEDDING: "e\x1f" + question,
        CacheType.MODEL_OUTPUT: "o\x1f" + question + "\x1f" + budget + "\x1f" + passages,
    }
    costs_s = {
        CacheType.QUERY_RESULT: seconds.sum(axis=1),
        CacheType.EMBEDDING: seconds["embed_s"],
        CacheType.MODEL_OUTPUT: seconds["generate_s"],
    }
    kinds = _TYPES if wanted == "mix" else (CacheType(wanted),)
    sizes = {kind: _sizes(kind, requests, document, run_dir) for kind in kinds}
    return make_trace(
        f"{run_dir.name} ({wanted})",
        _interleaved([key_names[kind].to_numpy() for kind in kinds]),
        sizes=_interleaved([sizes[kind] for kind in kinds]),
        costs_s=_interleaved([costs_s[kind].to_numpy() for kind in kinds]),
        times_s=np.repeat(requests["sent_s"].to_numpy(dtype=np.float64), len(kinds)),
        ttls_s=None
        if ttl_s is None
        else np.tile([_lifetime_s(kind, ttl_s, run_dir) for kind in kinds], len(requests)),
        skips=np.tile(np.asarray([2, 0, 0]), len(requests)) if wanted == "mix" else None,
        left_out=left_out,
        num_warmup=len(kinds) * _num_before_measuring(requests),
    )


def _num_before_measuring(requests: pd.DataFrame) -> int:
    """0 where nothing was measured: then all there is counts."""
    return int(np.argmax(requests["phase"].to_numpy() == Phase.MEASURE.value))


def _rows(run_dir: Path) -> pd.DataFrame:
    records, journal = run_dir / "records.parquet", run_dir / "journal.jsonl"
    try:
        if records.is_file():
            return pd.read_parquet(records)
        if journal.is_file():  # of a run that goes on or died; its last line may be half of one
            lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
            rows = pd.DataFrame([json.loads(line) for line in lines])
            if not rows.empty:
                return rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{run_dir}: its rows cannot be read: {error}") from error
    raise DataError(f"{run_dir}: no rows in it; expected the folder of a run")


def _document(run_dir: Path) -> dict[str, Any]:
    for name in ("run.json", "spec.json"):
        path = run_dir / name
        if path.is_file():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
            if isinstance(document, dict) and isinstance(document.get("config"), dict):
                return document
            raise DataError(f"{path}: got no config; expected the record of a run")
    raise DataError(f"{run_dir}: no run.json in it; expected the folder of a run")


def _seconds(rows: pd.DataFrame) -> pd.DataFrame:
    """What each row's parts cost, taken from where they were last computed for the same key."""
    # Nor was it by who joined another request, or was served a similar question's answer.
    computed = rows["result_cache"].isin(("miss", "off"))
    parts = pd.DataFrame(
        {
            "embed_s": rows["embed_s"].where(computed & ~rows["embedding_cache"].isin(_HIT)),
            "rest_s": (rows["search_s"] + rows["prompt_s"]).where(computed),
            "generate_s": rows["generate_s"].where(rows["served_by"] == "engine"),
        }
    )
    key = [rows["question_id"], rows["max_new_tokens"]]
    parts["embed_s"] = parts["embed_s"].groupby(rows["question_id"]).ffill()
    for part in ("rest_s", "generate_s"):
        parts[part] = parts[part].groupby(key).ffill()
    # Two requests at once: the one that was sent first may have been answered by the other.
    parts["embed_s"] = parts["embed_s"].groupby(rows["question_id"]).bfill()
    for part in ("rest_s", "generate_s"):
        parts[part] = parts[part].groupby(key).bfill()
    return parts


def _sizes(kind: CacheType, rows: pd.DataFrame, document: dict[str, Any], run_dir: Path) -> Whole:
    if kind == CacheType.QUERY_RESULT:
        columns = ("answer", "retrieved_ids", "prompt_tokens", "output_tokens")
        record_bytes = np.asarray(
            [
                len(
                    encode(
                        {
                            "answer": answer,
                            "retrieved_ids": [str(passage) for passage in passages],
                            "prompt_tokens": int(prompt_tokens),
                            "output_tokens": int(output_tokens),
                        }
                    )
                )
                for answer, passages, prompt_tokens, output_tokens in zip(
                    *(rows[column] for column in columns), strict=True
                )
            ]
        )
    elif kind == CacheType.EMBEDDING:
        dimension = _found(document, "components", "embedder", "dimension")
        if not isinstance(dimension, int):
            raise DataError(f"{run_dir}: the embedder's dimension is not recorded")
        record_bytes = np.full(len(rows), len(encode(np.zeros(dimension, dtype=np.float32))))
    else:
        counted = _found(document, "components", "cache", "tiers", "l1", "by_type", kind.value)
        if not isinstance(counted, dict) or not counted.get("stored"):
            raise DataError(
                f"{run_dir}: how large a {kind.value} is was not measured in this run; expected a "
                "run with a cache, or another type than mix"
            )
        record_bytes = np.full(len(rows), round(counted["stored_bytes"] / counted["stored"]))
    return np.asarray(record_bytes + KEY_BYTES + OVERHEAD_BYTES, dtype=np.int64)


def _lifetime_s(kind: CacheType, ttl_s: dict[str, float], run_dir: Path) -> float:
    seconds = ttl_s.get(kind.value, 0.0)
    if seconds <= 0:
        raise DataError(f"{run_dir}: a {kind.value} is not cached in this run's configuration")
    return float(seconds)


def _found(document: dict[str, Any], *path: str) -> Any:
    value: Any = document
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _interleaved(columns: list[Any]) -> Any:
    """First items of all columns, then their second items, and so on."""
    return np.stack(columns, axis=1).reshape(-1) if len(columns) > 1 else columns[0]
