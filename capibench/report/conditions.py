"""Under which conditions a study was measured, in words."""

from __future__ import annotations

from typing import Any

from capibench.measure.slo import Slo
from capibench.report.formatting import format_value
from capibench.report.results import Study
from capibench.report.runs import Ground, RunResult


def conditions(study: Study) -> list[tuple[str, str]]:
    """(name, sentence) pairs; where the runs differ, all values are given."""
    runs = [run for run in study.runs if run.document["environment"]] or list(study.runs)
    pairs = [
        ("Load", _joined(_load(run) for run in runs)),
        ("Objectives", _joined(_objectives(run) for run in runs)),
        ("Seed", _joined(str(run.document["config"].get("seed", "?")) for run in runs)),
        ("Corpus", _joined(_corpus(run) for run in runs)),
        ("Questions' difficulty", _bm25(study)),
        ("Model", _joined(str(run.document["hashes"].get("model", "")) for run in runs)),
        ("Machine", _joined(_machine(run) for run in runs)),
        ("Threads", _joined(_threads(run) for run in runs)),
        ("Machine noise", _noise(runs)),
        ("Software", _joined(_software(run) for run in runs)),
        ("Same for all", _same(study)),
        ("Validity", _validity(runs)),
    ]
    return [(name, text) for name, text in pairs if text]


def load_sentence(study: Study) -> str:
    """The load in one sentence, for the page's head."""
    loads = _joined(_load(run) for run in study.runs)
    return f"Load: {loads}." if loads else ""


def ground_sentence(study: Study, ground: Ground) -> str:
    """What the runs of a block share; the load and objectives where the study has several."""
    text = ground.sentence()
    run = next(c.finished[0] for c in study.combinations if c.ground == ground)
    if len({other.load for other in study.grounds}) > 1:
        text += f"; load {_load(run)}, seed {run.document['config'].get('seed', '?')}"
    if len({other.slo for other in study.grounds}) > 1:
        text += f"; objectives {_objectives(run) or 'none'}"
    return text


def code_sentence(study: Study) -> str:
    """Which code made these numbers."""
    found = {
        (code.get("commit"), code.get("dirty"))
        for run in study.runs
        if (code := run.document["environment"].get("code"))
    }
    known = [f"{c[:10]}{' with uncommitted changes' if dirty else ''}" for c, dirty in found if c]
    return f"Commit {', '.join(sorted(known))}." if known else "Installed package, no checkout."


def _joined(texts: Any) -> str:
    return " | ".join(dict.fromkeys(text for text in texts if text))


def _load(run: RunResult) -> str:
    config = run.document["config"].get("load")
    if not isinstance(config, dict):
        return ""
    sent = run.value("success_rate").n  # a replay may hold fewer than were asked for
    told = {**config, "num_requests": sent} if sent and "num_requests" in config else config
    shown = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in told.items()
        if key != "_target_"
        and isinstance(value, int | float | str)
        and not isinstance(value, bool)
    ]
    return ", ".join([run.choices.get("load", "load"), *shown[:8]])


def _objectives(run: RunResult) -> str:
    config = run.document["config"].get("slo")
    if not isinstance(config, dict):
        return ""
    return Slo(config.get("e2e_ms"), config.get("ttft_ms")).sentence()


def _corpus(run: RunResult) -> str:
    if not run.ground.corpus:
        return ""
    described = run.document["components"].get("corpus", {})
    counts = ", ".join(
        f"{value:,} {key.removeprefix('num_')}"
        for key, value in described.items()
        if key.startswith("num_") and isinstance(value, int)
    )
    name = run.choices.get("corpus", "corpus")
    return f"{name}, {counts + ', ' if counts else ''}hash {run.ground.corpus[:16]}"


def _bm25(study: Study) -> str:
    for c in study.combinations:
        bm25, recall = c.number("quality.bm25_hit_at_k"), c.number("quality.hit_at_k")
        if bm25 is not None:
            text = f"plain BM25 finds a right passage for {format_value('success_rate', bm25)}"
            if recall is not None:
                text += (
                    f" of the held-out questions; {c.label} gave one to "
                    f"{format_value('success_rate', recall)} of the requests"
                )
            return text + " (recall@k compares with exact search and says nothing about this)"
    return ""


def _machine(run: RunResult) -> str:
    environment = run.document["environment"]
    cpu = environment.get("cpu")
    if not cpu:
        return ""
    units = [name.upper() for name in ("avx512", "avx512_bf16", "amx_bf16") if cpu.get(name)]
    parts = [str(cpu.get("model", "?")), f"{cpu.get('usable_cores', '?')} cores"]
    if environment.get("memory_bytes"):
        parts.append(f"{environment['memory_bytes'] / 2**30:.0f} GiB")
    gpu = environment.get("gpu")
    parts.append(f"{gpu['count']} × {gpu['name']}" if gpu else "no GPU used")
    return ", ".join(parts + units)


def _threads(run: RunResult) -> str:
    threads = run.document["environment"].get("threads", {})
    shown = {key: threads[key] for key in ("torch", "faiss", "OMP_NUM_THREADS") if threads.get(key)}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _noise(runs: list[RunResult]) -> str:
    drifts = [v for run in runs if (v := run.value("noise.drift").value) is not None]
    if not drifts:
        return ""
    text = f"calibration kernel drifted by {min(drifts):+.1%} to {max(drifts):+.1%} within a run"
    times = [time for run in runs for time in run.calibration_s]
    if times:
        text += (
            f", {max(times) / min(times) - 1:.1%} between the fastest and the slowest; smaller "
            "differences between combinations count as ties"
        )
    return text


def _software(run: RunResult) -> str:
    environment = run.document["environment"]
    packages = environment.get("packages", {})
    lower = {name.lower(): version for name, version in packages.items()}
    names = ("torch", "transformers", "faiss-cpu", "faiss-gpu", "numpy", "mlflow", "capibench")
    shown = [f"{name} {lower[name]}" for name in names if name in lower]
    python = f"Python {environment['python']}" if environment.get("python") else ""
    return ", ".join(part for part in (python, *shown) if part)


def _same(study: Study) -> str:
    plans: dict[int, set[str]] = {}
    for run in study.runs:
        if run.plan is not None:
            plans.setdefault(run.repeat, set()).add(run.plan)
    if not plans:
        return ""
    if all(len(found) == 1 for found in plans.values()):
        return "all combinations were sent the same requests at the same times (one plan hash)"
    return "the combinations were sent different requests; only those with equal plans are paired"


def _validity(runs: list[RunResult]) -> str:
    measured = [run for run in runs if run.document["metrics"]]
    invalid = sum(not run.latency_valid for run in measured)
    saturated = sum(run.saturated is True for run in measured)
    unknown = sum(run.saturated is None for run in measured)
    text = f"{len(measured) - invalid} of {len(measured)} runs with a punctual sender, "
    text += f"{saturated} saturated"
    return text + (f", {unknown} with too few requests to tell" if unknown else "")
