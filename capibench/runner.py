"""The processes of a run: `python -m capibench.runner measure|prepare|check FOLDER`.

measure: build and check the choices, load the stack, calibrate the noise, warm up, measure under
    load, drain, write `run.json`; ends early with `NOT_PREPARED_EXIT` where artifacts are missing.
prepare: make the artifacts that are missing.
check: only build and check, all cells of a study at once (FOLDER is the study's).

The launching process (`capibench.launch`) starts them and reads `run.json` afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capibench.artifacts import ArtifactMissing, ArtifactStore
from capibench.errors import ConfigError, DataError, ImpossibleCombination, MissingExtra
from capibench.journal import Journal
from capibench.records import RequestRecord, RunStatus
from capibench.run_folder import (
    CONFIG_ERROR_EXIT,
    NOT_PREPARED_EXIT,
    RunSpec,
    run_document,
    utc_now,
    write_json,
)

if TYPE_CHECKING:
    from capibench.load.driver import Window

log = logging.getLogger("capibench")


def main(arguments: list[str]) -> int:
    step, run_dir = arguments[0], Path(arguments[1])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    if step == "check":
        return check_cells(run_dir)
    spec = RunSpec.read(run_dir)
    started_at = utc_now()

    def end(status: RunStatus, reason: str) -> None:
        document = run_document(spec, run_dir, status=status, reason=reason, started_at=started_at)
        write_json(run_dir / "run.json", document)

    try:
        if step == "prepare":
            prepare(spec)
        else:
            write_json(run_dir / "run.json", measure(spec, run_dir, started_at))
    except ArtifactMissing:
        return NOT_PREPARED_EXIT
    except ImpossibleCombination as error:
        end(RunStatus.SKIPPED, str(error))
        return CONFIG_ERROR_EXIT
    except (ConfigError, DataError, MissingExtra) as error:
        end(RunStatus.FAILED, str(error))
        return CONFIG_ERROR_EXIT
    except Exception as error:  # noqa: BLE001 - the last chance to record why this run has no result
        log.error("%s", traceback.format_exc())
        end(RunStatus.FAILED, f"{step}: {type(error).__name__}: {error}")
        return 1
    return 0


def check_cells(study_dir: Path) -> int:
    """Build every cell of a study before the first one runs; print the first wrong value.

    A combination that is only impossible is no error here: its cell will say that it was skipped.
    """
    from capibench.stack import build_choices

    for config in json.loads((study_dir / "cells.json").read_text(encoding="utf-8")):
        try:
            build_choices(config)
        except ImpossibleCombination:
            continue
        except (ConfigError, MissingExtra) as error:
            sys.stdout.write(str(error))
            return CONFIG_ERROR_EXIT
    return 0


def prepare(spec: RunSpec) -> None:
    """Make what is missing."""
    from capibench.stack import build_choices

    choices = build_choices(spec.config)
    _pin_threads(choices.time)
    preparation = _preparation(spec, choices, may_make=True)
    _plan(choices, spec, preparation.corpus)  # a load that cannot be planned ends before the work
    preparation.make_all()


def _preparation(spec: RunSpec, choices: Any, may_make: bool) -> Any:
    from capibench.prepare import Preparation

    store = ArtifactStore(Path(spec.home) / "artifacts", may_make)
    return Preparation(choices, spec.config, store)


def _pin_threads(time: Any) -> None:
    num_threads = getattr(time, "num_threads", 1)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(num_threads)
    if "faiss" in sys.modules:
        import faiss

        faiss.omp_set_num_threads(num_threads)


@dataclass
class _Loaded:
    """What `_load` hands to the measured part."""

    model: Any
    facts: dict[str, float | None]
    components: dict[str, dict[str, Any]]
    identity: dict[str, str]


def measure(spec: RunSpec, run_dir: Path, started_at: str) -> dict[str, Any]:
    """The measured half of a run; returns the finished `run.json` document."""
    from capibench.measure import environment, noise
    from capibench.measure.memory import peak_bytes, reset_peak
    from capibench.measure.summary import rows_frame, summarize
    from capibench.stack import build_choices

    choices = build_choices(spec.config)
    _pin_threads(choices.time)
    # An event loop that shares its process with a decode loop waits this long for the interpreter
    # lock at worst; the default of 5 ms would be most of a short request's latency.
    sys.setswitchinterval(0.00005)
    preparation = _preparation(spec, choices, may_make=False)
    corpus = preparation.corpus
    plan = _plan(choices, spec, corpus)
    loaded = _load(choices, preparation)

    virtual = spec.choices.get("time") == "virtual"
    noise_before_s = 0.0 if virtual else noise.calibrate()
    gc.collect()
    gc.freeze()  # what was loaded stays; collecting it again would only pause the run
    reset_peak()
    with Journal(run_dir) as journal:
        rows, window, served = choices.time.run(
            _serve(choices, spec, run_dir, loaded, corpus, plan, journal)
        )
    if not virtual:
        noise_after_s = noise.calibrate()
        loaded.facts["noise.before_s"] = noise_before_s
        loaded.facts["noise.after_s"] = noise_after_s
        loaded.facts["noise.drift"] = noise.drift(noise_before_s, noise_after_s)
        loaded.facts["memory.resident_bytes"] = served["resident_bytes"]
        loaded.facts["memory.peak_bytes"] = peak_bytes()
    loaded.components.update(served["components"])

    frame = rows_frame(rows)
    summary = summarize(
        frame,
        loaded.facts,
        window,
        choices.slo,
        relevance={q.id: (q.relevant, q.answers) for q in corpus.questions},
        modeled=choices.modeled,
        seed=spec.config["seed"],
    )
    return run_document(
        spec,
        run_dir,
        status=RunStatus.FINISHED,
        reason=None,
        started_at=started_at,
        measured={
            "modeled": choices.modeled,
            "environment": environment.describe(),
            "hashes": {"corpus": corpus.content_hash, "plan": plan.content_hash, **loaded.identity},
            "facts": loaded.facts,
            "components": loaded.components,
            "metrics": summary.metrics_document(),
            "validity": summary.validity_document(),
        },
    )


def _load(choices: Any, preparation: Any) -> _Loaded:
    """Load everything that the load will touch, and time each part: set-up is a cost."""
    from time import perf_counter

    import numpy as np

    facts: dict[str, float | None] = {
        "setup.corpus_s": preparation.corpus_artifact.make_seconds,
    }
    components: dict[str, dict[str, Any]] = {
        "corpus": {"name": preparation.corpus.name, **preparation.corpus.manifest}
    }
    identity = {"prompt": repr(choices.prompt)}

    begin_s = perf_counter()
    choices.embedder.open()
    facts["setup.embedder_load_s"] = perf_counter() - begin_s
    identity["embedder"] = choices.embedder.fingerprint()
    identity["index"] = "modeled"
    if preparation.searches:
        facts["quality.bm25_hit_at_k"] = preparation.bm25["value"]
        facts["setup.embed_corpus_s"] = preparation.vectors_artifact.make_seconds
        facts["setup.index_build_s"] = preparation.index_artifact.make_seconds
        begin_s = perf_counter()
        choices.index.load(preparation.index_artifact.path / "index.bin")
        facts["setup.index_load_s"] = perf_counter() - begin_s
        facts["index.bytes"] = choices.index.size_bytes()
        recall = preparation.recall
        facts["setup.index_tuning_s"] = preparation.recall_artifact.make_seconds
        if recall["effort"] is not None:
            choices.index.set_effort(recall["effort"])
        for bound in ("value", "low", "high"):
            name = "quality.recall_at_k" + ("" if bound == "value" else f".{bound}")
            facts[name] = recall["recall"][bound]
        identity["index"] = f"{preparation.index_artifact.path.name}:{recall['effort']}"
        facts["index.effort"] = recall["effort"]
    else:
        ids = np.arange(len(preparation.corpus.passages), dtype=np.int64)
        choices.index.build(np.zeros((len(ids), 1), dtype=np.float32), ids)

    model = None
    identity["model"] = "none"
    if choices.engine.needs_model:
        begin_s = perf_counter()
        model = choices.model.load()
        facts["setup.model_load_s"] = perf_counter() - begin_s
        model = _quantized(choices, preparation, model, facts, components)
        identity["model"] = model.fingerprint
        if choices.model.meaningful:
            for name, value in preparation.text_quality.items():
                for bound in ("value", "low", "high"):
                    suffix = "" if bound == "value" else f".{bound}"
                    facts[f"quality.{name}{suffix}"] = value[bound]
    identity["corpus"] = preparation.corpus.content_hash
    return _Loaded(model, facts, components, identity)


def _quantized(
    choices: Any, preparation: Any, model: Any, facts: dict[str, Any], components: dict[str, Any]
) -> Any:
    """The model to serve; its bytes are counted before and after."""
    from dataclasses import replace
    from time import perf_counter

    from capibench.quantization.bytes import file_bytes, resident_bytes

    before = resident_bytes(model.module)
    kernel = "none"
    if preparation.quantizes:
        artifact = preparation.quantized_artifact
        facts["setup.quantize_s"] = artifact.make_seconds
        facts["model.disk_bytes"] = file_bytes(artifact.path)
        begin_s = perf_counter()
        fingerprint = f"{model.fingerprint}:{artifact.path.name}"
        model, kernel = choices.quantization.load(model, artifact.path)
        model = replace(model, fingerprint=fingerprint)
        facts["setup.quantized_load_s"] = perf_counter() - begin_s
    facts["model.baseline_bytes"] = before
    facts["model.bytes"] = resident_bytes(model.module)
    components["quantization"] = {**choices.quantization.params(), "kernel": kernel}
    components["model"] = {"dtype": model.dtype, "fingerprint": model.fingerprint}
    return model


def _plan(choices: Any, spec: RunSpec, corpus: Any) -> Any:
    from capibench.load.streams import LoadStreams

    questions = corpus.questions_in(choices.load.questions)
    if not questions:
        raise ConfigError(
            "load.questions",
            f"the corpus {corpus.name!r} has no questions in the split {choices.load.questions!r}",
        )
    streams = LoadStreams.spawn(spec.config["seed"], spec.config["repeat"])
    return choices.load.plan(questions, streams)


async def _serve(
    choices: Any,
    spec: RunSpec,
    run_dir: Path,
    loaded: _Loaded,
    corpus: Any,
    plan: Any,
    journal: Journal,
) -> tuple[list[RequestRecord], Window, dict[str, Any]]:
    """Inside the event loop: compose the pipeline, drive the load through it, drain."""
    from capibench.batching.batcher import DynamicBatcher
    from capibench.load.driver import drive
    from capibench.measure.memory import resident_bytes
    from capibench.pipeline import RagPipeline, Stack
    from capibench.progress import Progress

    loop = asyncio.get_running_loop()
    engine = choices.engine
    begin_s = loop.time()
    await engine.start(loaded.model)
    loaded.facts["setup.engine_start_s"] = loop.time() - begin_s
    cache = choices.cache.open(run_dir / "cache_l2")
    pipeline = RagPipeline(
        Stack(
            passage_ids=[p.id for p in corpus.passages],
            passage_texts=[p.text for p in corpus.passages],
            embedder=choices.embedder,
            index=choices.index,
            prompt=choices.prompt,
            engine=engine,
            generation=DynamicBatcher(
                engine.generate,
                choices.batching.strategy,
                engine.num_workers,
                max_queue_size=choices.batching.max_queue_size,
            ),
            cache=cache,
            identity=loaded.identity,
        )
    )
    rows: list[RequestRecord] = []
    try:
        pipeline.start()
        with Progress(len(plan.requests), spec.config["name"]) as progress:

            def on_record(record: RequestRecord) -> None:
                journal.append(record)
                rows.append(record)
                progress.advance(record)

            driven = await drive(plan, pipeline.answer, on_record)
        served = {
            "resident_bytes": resident_bytes(),
            "components": {
                "embedder": choices.embedder.describe(),
                "index": choices.index.describe(),
                "engine": engine.describe(),
                "cache": {} if cache is None else cache.stats(),
                "load": {**choices.load.describe(), **plan.facts},
            },
        }
        await pipeline.stop()
    finally:
        await engine.stop()
        if cache is not None:
            cache.close()
    return rows, driven.window.since(pipeline.origin_s), served


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
