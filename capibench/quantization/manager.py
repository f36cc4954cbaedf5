"""Quantize, judge and compare local models from Python: one object, no command line.

    from capibench.quantization import QuantizationManager, QuantizationMethod

    manager = QuantizationManager()
    result = manager.quantize_model("path/to/model", QuantizationMethod.GPTQ)
    result = manager.benchmark_quantized_model(result, held_out_texts)

It decides nothing itself: methods are built from `conf/quantization`, figures come from the
modules that measure them. What it adds is that they belong together: one artifact per content,
one history, every method against the same baseline on the same tokens.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from safetensors import SafetensorError

from capibench.artifacts import Artifact, ArtifactStore, home, source_hash
from capibench.config import build
from capibench.errors import ConfigError, MissingExtra
from capibench.model.precision import Precision
from capibench.model.pretrained import load_folder, load_tokenizer, source_key
from capibench.quantization import calibration_text
from capibench.quantization.benchmark import Baseline, Effort
from capibench.quantization.calibration_text import CalibrationText, checked_texts
from capibench.quantization.comparison import DEFAULT_BALANCE, Comparison, axes, candidate, rank
from capibench.quantization.history import BENCHMARKED, QUANTIZED, History
from capibench.quantization.methods import QuantizationMethod
from capibench.quantization.presets import build_preset
from capibench.quantization.quantization import Quantization, artifact_params
from capibench.quantization.reloading import (
    model_folder,
    record,
    reload,
    verify,
)
from capibench.quantization.result import ACCURACY, SPEED, QuantizationResult
from capibench.run_folder import utc_now

_KIND = "quantized"
_log = logging.getLogger(__name__)


class QuantizationManager:
    """Artifacts, history and measuring conditions of all the quantizing done through it.

    Args:
        artifacts_dir: where artifacts and the history are kept; default: `quantization` in the
            CapiBench home (`$CAPIBENCH_HOME`, or `outputs` in the working folder).
        precision: what the original is served in: auto (bf16 where the hardware has it), bf16,
            fp32.
        seed: of the default calibration text, the prompts and the order of measuring.
        num_calibration_texts: offered where a method needs text and the caller gives none; it takes
            as many as its settings say.
        min_calibration_tokens: fewer in all texts together are refused.
        eval_tokens: held-out tokens scored at most.
        eval_window: tokens that the model sees at once while it is scored.
        prompt_tokens, new_tokens: of each timed generation.
        batch_sizes: sequences that are decoded together, timed apart; batch 1 is always timed.
            Windows, prompts and outputs are cut to what the model's positions allow, and
            recorded as they were used.
        balance: what one logarithmic unit of accuracy, speed and memory is worth in
            `compare_quantization_methods`. At 10, 1, 1, one per cent of perplexity is worth ten
            per cent of speed or of memory.
    """

    def __init__(
        self,
        *,
        artifacts_dir: str | Path | None = None,
        precision: Precision = "auto",
        seed: int = 0,
        num_calibration_texts: int = 1000,
        min_calibration_tokens: int = 512,
        eval_tokens: int = 20_000,
        eval_window: int = 256,
        prompt_tokens: int = 128,
        new_tokens: int = 32,
        batch_sizes: Sequence[int] = (1,),
        balance: Mapping[str, float] | None = None,
    ) -> None:
        for name, value in (
            ("num_calibration_texts", num_calibration_texts),
            ("min_calibration_tokens", min_calibration_tokens),
        ):
            if value < 1:
                raise ConfigError(name, f"got {value}; expected at least 1")
        if precision not in ("auto", "bf16", "fp32"):
            raise ConfigError("precision", f"got {precision!r}; expected auto, bf16 or fp32")
        folder = home() / "quantization" if artifacts_dir is None else Path(artifacts_dir)
        self.artifacts_dir = folder.expanduser().resolve()
        self._precision: Precision = precision
        self._seed = seed
        self._num_calibration_texts = num_calibration_texts
        self._min_calibration_tokens = min_calibration_tokens
        self._effort = Effort(
            eval_tokens, eval_window, prompt_tokens, new_tokens, tuple(batch_sizes), seed
        )
        self._axes = axes(DEFAULT_BALANCE if balance is None else balance)
        self._store = ArtifactStore(self.artifacts_dir)
        self._history = History(self.artifacts_dir / "history.jsonl")

    def quantize_model(
        self,
        model_path: str | Path,
        method: QuantizationMethod,
        config_name: str | None = None,
        custom_config: Mapping[str, Any] | None = None,
        calibration_data: Sequence[str] | None = None,
    ) -> QuantizationResult:
        """Quantize the model of a folder, or find that it was done before, and count its bytes.

        Args:
            model_path: a folder with config.json, weights as .safetensors and a tokenizer.
            method: what to do.
            config_name: a preset of this method; default: the method's own.
            custom_config: values that replace those of the preset.
            calibration_data: texts for the methods that read some (GPTQ, AWQ, STATIC; the others
                do not look at them); default: documentation of the standard library.

        Returns:
            accuracy_loss and speedup_factor are None: `benchmark_quantized_model` measures them.

        Raises:
            ConfigError: naming the argument that is wrong, before any work; also when the
                artifact cannot be written (the disk is full, say).
        """
        method = _method(method)
        folder = model_folder(model_path)
        preset, settings, quantization = build_preset(method, config_name, custom_config)
        text, facts = self._calibration(quantization, folder, calibration_data)
        try:
            source = source_key(folder, self._precision)
            artifact = self._artifact(folder, source, quantization, text)
            reloaded = reload(quantization, folder, self._precision, artifact.path)
        except Exception as error:
            self._note_failure(method, preset, folder, error)
            raise
        config = {
            "method": method.value,
            "preset": preset,
            "settings": settings,
            "precision": self._precision,
            "dtype": reloaded.dtype,
            "model": source,
            "calibration": facts,
            "kernel": reloaded.kernel,
        }
        return self._record(QUANTIZED, record(folder, config, artifact, reloaded))

    def benchmark_quantized_model(
        self, result: QuantizationResult, test_data: Sequence[str], num_iterations: int = 100
    ) -> QuantizationResult:
        """Measure what quantizing cost in quality and gained in speed, beside the original.

        Args:
            result: of `quantize_model`, now or in an earlier process.
            test_data: held-out texts, which neither model nor calibration has seen.
            num_iterations: interleaved rounds; each times one generation of every model.

        Returns:
            `result` with accuracy_loss, speedup_factor and the metrics behind them, under the
            same id.

        Raises:
            ConfigError: an argument is wrong.
            DataError: the artifact is gone or damaged, or the original has changed since.
        """
        texts = checked_texts(test_data, "test_data")
        _check_iterations(num_iterations)
        verify(result, _KIND)
        original = load_folder(
            Path(result.original_model_path), result.config["precision"], "model_path"
        )
        baseline = Baseline(original, texts, self._effort)
        return self._benchmark(result, baseline, num_iterations)

    def compare_quantization_methods(
        self,
        model_path: str | Path,
        test_data: Sequence[str],
        *,
        calibration_data: Sequence[str] | None = None,
        num_iterations: int = 100,
    ) -> Comparison:
        """Every method with its default preset on one model, against one baseline.

        `none` is among them: the baseline against itself, which shows the noise. A method whose
        package is missing, or that fails, is listed with the reason and has no figures.
        """
        folder = model_folder(model_path)
        texts = checked_texts(test_data, "test_data")
        if calibration_data is not None:
            calibration_text.given(calibration_data)
        _check_iterations(num_iterations)
        baseline = Baseline(load_folder(folder, self._precision, "model_path"), texts, self._effort)
        results: dict[str, QuantizationResult] = {}
        unavailable: dict[str, str] = {}
        failed: dict[str, str] = {}
        for method in QuantizationMethod:
            try:
                made = self.quantize_model(folder, method, calibration_data=calibration_data)
                results[method.value] = self._benchmark(made, baseline, num_iterations)
            except MissingExtra as error:
                unavailable[method.value] = str(error)
            except Exception as error:  # noqa: BLE001 - one method must not end the comparison
                _log.warning("%s failed and is left out of the comparison", method, exc_info=True)
                failed[method.value] = f"{type(error).__name__}: {error}"
        ranking = rank([candidate(name, result) for name, result in results.items()], self._axes)
        return Comparison(str(folder), results, unavailable, failed, ranking)

    def get_quantization_stats(self) -> dict[str, Any]:
        """Counts, costs and means by method over the whole history; JSON-serialisable."""
        return self._history.statistics()

    def get_quantization_history(self, limit: int | None = None) -> list[QuantizationResult]:
        """The newest `limit` results (all when None), newest first, each as last measured."""
        if limit is not None and limit < 1:
            raise ConfigError("limit", f"got {limit}; expected at least 1, or None for all")
        return self._history.results()[::-1][:limit]

    def _calibration(
        self, quantization: Quantization, folder: Path, texts: Sequence[str] | None
    ) -> tuple[CalibrationText | None, dict[str, Any] | None]:
        """The text to read and what is recorded of it; None for methods that read none."""
        chosen = None if texts is None else calibration_text.given(texts)
        if not quantization.calibrated:
            return None, None
        if chosen is None:
            with self._writing():
                chosen = calibration_text.standard_library(
                    self._store, self._num_calibration_texts, self._seed, source_hash("corpus")
                )
        tokenizer = load_tokenizer(folder, "model_path")
        return chosen, chosen.facts(tokenizer, self._min_calibration_tokens)

    def _artifact(
        self,
        folder: Path,
        source: Mapping[str, Any],
        quantization: Quantization,
        text: CalibrationText | None,
    ) -> Artifact:
        key = {
            "model": source,
            "quantization": artifact_params(quantization),
            "calibration": None if text is None else text.digest,
            "code": {"model": source_hash("model"), "quantization": source_hash("quantization")},
        }

        def make(target: Path) -> float:
            model = load_folder(folder, self._precision, "model_path")
            begin_s = perf_counter()
            quantization.quantize(model, [] if text is None else text.texts, target)
            seconds = perf_counter() - begin_s
            del model
            gc.collect()  # before it is loaded once more
            return seconds

        with self._writing():
            return self._store.get_or_make(_KIND, key, make)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A full or read-only disk as the one thing that the caller can act on."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                "artifacts_dir",
                f"got {str(self.artifacts_dir)!r}, where writing failed ({error}); nothing "
                "unfinished was kept; expected a writable folder with room",
            ) from error

    def _record(self, event: str, result: QuantizationResult) -> QuantizationResult:
        with self._writing():
            self._history.add(event, result)
        return result

    def _benchmark(
        self, result: QuantizationResult, baseline: Baseline, num_iterations: int
    ) -> QuantizationResult:
        quantization = build(result.config["settings"], "quantization")
        folder, artifact = Path(result.original_model_path), Path(result.quantized_model_path)
        model = load_folder(folder, result.config["precision"], "model_path")
        quantized, _ = quantization.load(model, artifact)
        metrics = baseline.measure(quantized, num_iterations)
        ratio = metrics[ACCURACY]["value"]
        measured = replace(
            result,
            accuracy_loss=None if ratio is None else ratio - 1,
            speedup_factor=metrics[SPEED]["value"],
            validation_metrics={**result.validation_metrics, **metrics},
        )
        return self._record(BENCHMARKED, measured)

    def _note_failure(
        self, method: QuantizationMethod, preset: str, folder: Path, error: Exception
    ) -> None:
        """Into the history, if that can still be written: the error itself matters more."""
        failure = {
            "method": method.value,
            "preset": preset,
            "original_model_path": str(folder),
            "reason": f"{type(error).__name__}: {error}",
            "timestamp": utc_now(),
        }
        try:
            self._history.add_failure(failure)
        except OSError as also:
            _log.warning("the failure could not be recorded: %s", also)


def _method(method: QuantizationMethod) -> QuantizationMethod:
    try:
        return QuantizationMethod(method)
    except ValueError as error:
        known = ", ".join(QuantizationMethod)
        raise ConfigError("method", f"got {method!r}; expected one of {known}") from error


def _check_iterations(num_iterations: int) -> None:
    if num_iterations < 1:
        raise ConfigError("num_iterations", f"got {num_iterations}; expected at least 1")
