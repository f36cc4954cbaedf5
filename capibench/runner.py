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
    from capibench.loading import Loaded

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
    except KeyboardInterrupt:  # the launcher, interrupted as well, records it
        return 130
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


def measure(spec: RunSpec, run_dir: Path, started_at: str) -> dict[str, Any]:
    """The measured half of a run; returns the finished `run.json` document."""
    from capibench.cache.ceiling import ceiling_facts
    from capibench.cache.tiers.tier_stats import prefetch_facts
    from capibench.loading import load_stack
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
    choices = preparation.served  # with the index that tuning chose, if it chose one
    loaded = load_stack(choices, preparation)

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
        children_peak = served["children_peak_bytes"]
        peak = None if children_peak is None else peak_bytes() + children_peak
        loaded.facts["memory.peak_bytes"] = peak
    loaded.components.update(served["components"])

    frame = rows_frame(rows)
    loaded.facts |= ceiling_facts(frame, served["components"]["cache"])
    loaded.facts |= prefetch_facts(served["components"]["cache"])
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
    loaded: Loaded,
    corpus: Any,
    plan: Any,
    journal: Journal,
) -> tuple[list[RequestRecord], Window, dict[str, Any]]:
    """Inside the event loop: compose the pipeline, drive the load through it, drain."""
    import numpy as np

    from capibench.batching.batcher import Batcher
    from capibench.cache.cache_quality import float16_recall, open_semantic, semantic_facts
    from capibench.engine.engine import LoadsModel
    from capibench.load.driver import drive
    from capibench.measure.memory import children_peak_bytes, resident_bytes
    from capibench.pipeline import RagPipeline, Stack
    from capibench.progress import Progress

    loop = asyncio.get_running_loop()
    engine = choices.engine
    begin_s = loop.time()
    await engine.start(loaded.model)
    loaded.facts["setup.engine_start_s"] = loop.time() - begin_s
    if engine.needs_model and isinstance(engine, LoadsModel):
        loaded.serves(engine.model_facts())
    held_bytes = engine.describe().get("kv_bytes_per_token")
    if held_bytes is not None:
        loaded.facts["engine.kv_bytes_per_token"] = held_bytes
    rngs = [
        np.random.default_rng(stream)
        for stream in np.random.SeedSequence([spec.config["seed"], spec.config["repeat"]]).spawn(2)
    ]
    cache = choices.cache.open(run_dir / "cache_l2", loop.time(), rngs[0])
    semantic = open_semantic(choices, corpus, plan, loaded, rngs[1])
    if choices.cache.rounds_embeddings and not (choices.embedder.modeled or choices.index.modeled):
        loaded.facts["cache.embedding.float16_recall_at_k"] = float16_recall(
            [question.text for question in corpus.questions],
            choices.embedder.encode,
            lambda vectors: choices.index.search(
                vectors, min(choices.prompt.top_k, len(corpus.passages))
            )[0],
        )
    pipeline = RagPipeline(
        Stack(
            passage_ids=[p.id for p in corpus.passages],
            passage_texts=[p.text for p in corpus.passages],
            embedder=choices.embedder,
            index=choices.index,
            prompt=choices.prompt,
            engine=engine,
            generation=Batcher(
                engine.generate,
                choices.batching.strategy,
                engine.num_workers,
                max_queue_size=choices.batching.max_queue_size,
                composition=choices.batching.composition,
            ),
            cache=cache,
            single_flight=choices.cache.single_flight,
            semantic=semantic,
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
            "children_peak_bytes": children_peak_bytes(),
            "components": {
                "embedder": choices.embedder.describe(),
                "index": choices.index.describe(),
                "engine": engine.describe(),
                "cache": {} if cache is None else cache.stats(),
                "semantic_cache": {} if semantic is None else semantic.stats(),
                "load": {**choices.load.describe(), **plan.facts},
            },
        }
        await pipeline.stop()
        if semantic is not None:
            loaded.facts |= semantic_facts(semantic, choices.cache.similar.confidence)
    finally:
        await engine.stop()
        if cache is not None:
            cache.close()
    return rows, driven.window.since(pipeline.origin_s), served


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
