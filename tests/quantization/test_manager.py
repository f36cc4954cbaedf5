"""Quantizing from Python: real bytes, one artifact per content, errors before any work."""

import json
import math
import resource
import subprocess
import sys
import uuid
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from tiny_llama import byte_tokenizer, load_tiny, save_tiny
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import capibench.quantization
from capibench.artifacts import ArtifactStore
from capibench.errors import ConfigError, DataError
from capibench.quantization import (
    QuantizationLevel,
    QuantizationManager,
    QuantizationMethod,
    QuantizationResult,
    Targets,
    check_targets,
)
from capibench.quantization.bytes import resident_bytes
from capibench.quantization.calibration_text import given, standard_library
from capibench.quantization.presets import build_preset, preset_names
from capibench.quantization.reloading import reload

TEXTS = [f"def f{i}(x): return x + {i}, which is the larger one of the two." for i in range(40)]
NOTHING = QuantizationMethod.NONE
INT8 = QuantizationMethod.INT8


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def quick(folder, **changes):
    options = {
        "precision": "fp32", "eval_tokens": 600, "eval_window": 48,
        "prompt_tokens": 8, "new_tokens": 3,
    }  # fmt: skip
    return QuantizationManager(artifacts_dir=folder, **{**options, **changes})


@pytest.fixture
def manager(tmp_path):
    return quick(tmp_path / "made")


def test_every_figure_is_counted(manager, source):
    result = manager.quantize_model(str(source), INT8)
    original = load_tiny(source)
    before = resident_bytes(original.module)
    checkpoint = sum(p.nbytes for p in original.module.parameters())
    assert result.original_size_mb == before / 1e6
    assert result.compression_ratio > 1.5
    assert result.compression_ratio == pytest.approx(before / 1e6 / result.quantized_size_mb)
    assert result.memory_reduction == pytest.approx(1 - 1 / result.compression_ratio)
    metrics = result.validation_metrics
    files = list(Path(result.quantized_model_path).rglob("*.safetensors"))
    assert metrics["disk_weight_bytes"] == sum(path.stat().st_size for path in files)
    assert metrics["original_checkpoint_bytes"] == checkpoint
    assert metrics["disk_compression_ratio"] == checkpoint / metrics["disk_weight_bytes"] > 1.5
    assert result.quantization_time_seconds > 0
    assert (result.accuracy_loss, result.speedup_factor) == (None, None)
    assert uuid.UUID(result.result_id).version == 4
    assert result.config["method"] == result.config["preset"] == "int8"
    assert result.config["dtype"] == "float32"
    assert result.config["calibration"] is None
    assert "14 layers" in result.config["kernel"]
    with pytest.raises(FrozenInstanceError):
        result.accuracy_loss = 0.0


def test_every_layer_is_checked_against_the_original(manager, source):
    metrics = manager.quantize_model(source, INT8).validation_metrics
    errors = metrics["layer_errors"]
    assert errors.pop("lm_head") == {"weight": 0, "output": 0}
    assert len(errors) == 14
    assert "model.layers.0.self_attn.q_proj" in errors
    for of in ("weight", "output"):
        # Uniform rounding to 255 levels of a few standard deviations.
        assert all(0.001 < error[of] < 0.02 for error in errors.values())
        assert metrics[f"worst_layer_{of}_error"] == max(error[of] for error in errors.values())
    none = manager.quantize_model(source, NOTHING).validation_metrics
    assert none["worst_layer_weight_error"] == none["worst_layer_output_error"] == 0


class MovesFactors:
    """Doubles a norm and halves the layers after it: another network with the same answers."""

    def load(self, model, folder):
        layer = model.module.model.layers[0]
        layer.input_layernorm.weight.data.mul_(2)
        for name in ("q_proj", "k_proj", "v_proj"):
            old = layer.self_attn.get_submodule(name)
            new = torch.nn.Linear(old.in_features, old.out_features, bias=False)
            new.weight.data = old.weight.data / 2
            layer.self_attn.set_submodule(name, new)
        return model, "aten::linear"


def test_layers_that_are_no_longer_the_original_ones_are_not_compared(source, tmp_path):
    moved = reload(MovesFactors(), source, "fp32", tmp_path)
    assert moved.layer_errors is None
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            moved.model.module(ids).logits, load_tiny(source).module(ids).logits
        )


def test_a_second_request_only_loads(manager, source):
    first = manager.quantize_model(source, INT8)
    path = Path(first.quantized_model_path)
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    second = quick(manager.artifacts_dir).quantize_model(source, INT8)
    assert second.quantized_model_path == first.quantized_model_path
    assert {p: p.stat().st_mtime_ns for p in path.iterdir()} == before
    assert not first.validation_metrics["reused"]
    assert second.validation_metrics["reused"]
    assert second.quantization_time_seconds == first.quantization_time_seconds
    assert second.result_id != first.result_id
    stats = manager.get_quantization_stats()
    assert (stats["num_results"], stats["num_made"], stats["num_reused"]) == (2, 1, 1)
    assert stats["quantization_seconds"] == first.quantization_time_seconds


def test_a_changed_setting_has_its_effect_and_its_own_artifact(manager, source):
    preset = manager.quantize_model(source, INT8)
    skipped = ["lm_head", "gate_proj", "up_proj"]
    custom = manager.quantize_model(
        source, INT8, config_name="int8", custom_config={"skip_modules": skipped}
    )
    assert custom.config["settings"]["skip_modules"] == skipped
    assert custom.quantized_model_path != preset.quantized_model_path
    assert custom.quantized_size_mb > preset.quantized_size_mb
    errors = custom.validation_metrics["layer_errors"]
    assert sum(error["output"] > 0 for error in errors.values()) == 10


def test_weights_in_another_floating_point_type(manager, source):
    result = manager.quantize_model(source, NOTHING, config_name="float16")
    assert result.compression_ratio == pytest.approx(2, rel=0.01)
    assert result.config["preset"] == "float16"
    assert 0 < result.validation_metrics["worst_layer_weight_error"] < 2**-11
    assert Path(result.quantized_model_path) != source
    assert abs(manager.benchmark_quantized_model(result, TEXTS, 1).accuracy_loss) < 0.01


def test_calibration_text_decides_the_artifact(manager, source):

    def static(texts):
        return manager.quantize_model(
            source,
            QuantizationMethod.STATIC,
            custom_config={"sequence_tokens": 32, "num_samples": 8},
            calibration_data=texts,
        )

    first = static(TEXTS)
    facts = first.config["calibration"]
    assert facts["num_texts"] == len(TEXTS)
    assert facts["num_tokens"] == sum(len(text) for text in TEXTS)  # one token per byte
    assert facts["blake2b"] == given(TEXTS).digest
    assert static(TEXTS[::-1]).quantized_model_path != first.quantized_model_path
    assert static(TEXTS).quantized_model_path == first.quantized_model_path
    with pytest.raises(ConfigError, match="calibration_data: got 5 tokens in 1 texts"):
        static(["short"])
    # A method that reads no text has one artifact whatever it is offered.
    paths = {
        manager.quantize_model(source, INT8, calibration_data=data).quantized_model_path
        for data in (None, TEXTS)
    }
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "int3"}, "method: got 'int3'; expected one of gptq, awq, int8, int4"),
        ({"config_name": "int9"}, "config_name: got 'int9'; expected one of .*int8"),
        (
            {"config_name": "none"},
            "config_name: got 'none', a preset of method 'none'; expected one of .*'int8': .*int8",
        ),
        (
            {"custom_config": {"bitz": 3}},
            "custom_config.bitz: got 3; preset int8 does not know it; expected one of .*skip_mod",
        ),
        (
            {"method": "int4", "custom_config": {"bits": 8}},
            "custom_config: got {'bits': 8}, which makes preset int4 method 'int8'; expected val",
        ),
        ({"custom_config": {"skip_modules": 7}}, "quantization.skip_modules: got 7"),
        (
            {"method": "none", "custom_config": {"bits": 4}},
            "custom_config.bits: got 4; preset none does not know it; it has no settings",
        ),
        ({"calibration_data": "text"}, "calibration_data: got str; expected a list of texts"),
        ({"calibration_data": []}, "calibration_data: got an empty list"),
        ({"calibration_data": ["a", 3]}, r"calibration_data\[1\]: got 3; expected text"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(manager, source, arguments, message):
    with pytest.raises(ConfigError, match=message):
        manager.quantize_model(source, **{"method": INT8, **arguments})
    assert not manager.artifacts_dir.exists()


def test_folders_that_are_no_models(manager, tmp_path):
    with pytest.raises(ConfigError, match=r"model_path: got .*gone.*; expected the folder"):
        manager.quantize_model(tmp_path / "gone", INT8)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match=r"model_path: .* no \.safetensors file"):
        manager.quantize_model(empty, INT8)
    bare = save_tiny(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ConfigError, match=r"model_path: .* has no tokenizer"):
        manager.quantize_model(bare, INT8)
    assert [failure["method"] for failure in manager._history.failures()] == ["int8"]
    assert manager.get_quantization_stats()["num_failed"] == 1
    assert manager.get_quantization_history() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision: got 'int8'; expected auto, bf16 or fp32"),
        ({"eval_window": 1}, "eval_window: got 1; expected at least 2"),
        ({"new_tokens": 0}, "new_tokens: got 0; expected at least 1"),
        ({"batch_sizes": [0]}, "batch_sizes: got .*; expected numbers from 1 up"),
        ({"min_calibration_tokens": 0}, "min_calibration_tokens: got 0"),
        ({"balance": {"speed": 1}}, "balance: got .*; expected weights of accuracy, speed, memory"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        quick(tmp_path, **options)


def test_benchmark_measures_quality_and_speed(manager, source):
    quantized = manager.quantize_model(source, INT8)
    result = manager.benchmark_quantized_model(quantized, TEXTS, num_iterations=4)
    assert result.result_id == quantized.result_id
    metrics = result.validation_metrics
    ratio = metrics["perplexity_ratio"]
    assert result.accuracy_loss == ratio["value"] - 1
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(
        metrics["perplexity"]["value"] / metrics["baseline_perplexity"]["value"]
    )
    assert abs(result.accuracy_loss) < 0.05
    assert metrics["top1_agreement"]["value"] > 0.9
    assert 0 < metrics["kl_mean"]["value"] < 0.1
    assert result.speedup_factor == metrics["decode_speedup"]["value"] > 0
    assert metrics["decode_speedup"]["n"] == 4
    assert metrics["ttft_s"]["value"] > 0
    assert metrics["tpot_s"]["value"] > 0
    rows = metrics["speed"]
    assert {(row["model"], row["batch_size"], row["phase"]) for row in rows} == {
        (model, 1, phase) for model in ("original", "quantized") for phase in ("prefill", "decode")
    }
    assert metrics["conditions"]["rounds"] == 4
    assert metrics["disk_weight_bytes"] == quantized.validation_metrics["disk_weight_bytes"]
    assert manager.get_quantization_history() == [result]
    gate = check_targets(result, Targets(0.05, None, 0.1))
    assert gate.passed


def test_the_baseline_against_itself(manager, source):
    result = manager.quantize_model(source, NOTHING)
    assert Path(result.quantized_model_path) == source.resolve()
    assert result.compression_ratio == 1
    assert result.validation_metrics["disk_weight_bytes"] is None
    measured = manager.benchmark_quantized_model(result, TEXTS, num_iterations=3)
    assert measured.accuracy_loss == 0
    assert measured.validation_metrics["top1_agreement"]["value"] == 1
    assert measured.validation_metrics["kl_mean"]["value"] == 0


def test_wider_shapes_are_cut_to_the_model_and_recorded(tmp_path, source):
    manager = quick(tmp_path, prompt_tokens=500, new_tokens=2, eval_window=500, batch_sizes=(2,))
    result = manager.benchmark_quantized_model(
        manager.quantize_model(source, NOTHING), TEXTS, num_iterations=1
    )
    conditions = result.validation_metrics["conditions"]
    assert (conditions["prompt_tokens"], conditions["eval_window"]) == (94, 96)
    assert conditions["batch_sizes"] == [1, 2]
    assert {row["batch_size"] for row in result.validation_metrics["speed"]} == {1, 2}


def test_bad_test_data(manager, source):
    result = manager.quantize_model(source, NOTHING)
    for data, message in (
        ("text", "test_data: got str"),
        ([], "test_data: got an empty list"),
        (["x"], "test_data: .*no window has two tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            manager.benchmark_quantized_model(result, data)
        with pytest.raises(ConfigError, match=message):
            manager.compare_quantization_methods(source, data)
    with pytest.raises(ConfigError, match="num_iterations: got 0"):
        manager.benchmark_quantized_model(result, TEXTS, num_iterations=0)
    with pytest.raises(ConfigError, match="limit: got 0"):
        manager.get_quantization_history(0)


def test_damaged_gone_or_foreign_weights_are_never_measured(manager, tmp_path, caplog):
    model = save_tiny(tmp_path / "model")
    result = manager.quantize_model(model, INT8)
    (path,) = Path(result.quantized_model_path).rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is gone or damaged; quantize the model anew"):
        manager.benchmark_quantized_model(result, TEXTS)
    assert "will be made anew" not in caplog.text
    again = manager.quantize_model(model, INT8)  # made anew in the same place
    assert not again.validation_metrics["reused"]
    manager.benchmark_quantized_model(result, TEXTS, num_iterations=1)
    save_tiny(model, seed=1)
    with pytest.raises(DataError, match="has changed since it was quantized"):
        manager.benchmark_quantized_model(result, TEXTS)


def test_history_survives_restart_and_damage(manager, source, caplog):
    first = manager.quantize_model(source, NOTHING)
    with (manager.artifacts_dir / "history.jsonl").open("ab") as file:
        file.write(b'{"event": "quantized", "result": {"result_id": "x"}}\nno json\n{"event": "qu')
    second = quick(manager.artifacts_dir).quantize_model(source, INT8)
    history = quick(manager.artifacts_dir).get_quantization_history()
    assert history == [second, first]
    assert caplog.text.count("is damaged and skipped") == 3
    assert manager.get_quantization_history(1) == [second]
    stats = manager.get_quantization_stats()
    assert json.loads(json.dumps(stats)) == stats
    assert stats["by_method"]["int8"]["mean_compression_ratio"] == second.compression_ratio
    assert stats["by_method"]["int8"]["mean_speedup_factor"] is None
    assert QuantizationResult.from_json(json.loads(json.dumps(second.to_json()))) == second


@contextmanager
def files_of_at_most(num_bytes):
    """Longer ones cannot be written: the same error path as a full disk, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_when_the_weights_cannot_be_written(manager, source):
    with files_of_at_most(100_000), pytest.raises(ConfigError) as raised:
        manager.quantize_model(source, INT8)
    assert str(raised.value).startswith("artifacts_dir: got ")
    assert "nothing unfinished was kept" in str(raised.value)
    assert list((manager.artifacts_dir / "quantized").iterdir()) == []
    assert manager.get_quantization_stats()["num_failed"] == 1
    assert not manager.quantize_model(source, INT8).validation_metrics["reused"]


def test_another_architecture(manager, tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=300,
                                       n_positions=64, bos_token_id=0, eos_token_id=3))  # fmt: skip
    model.save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    quantized = manager.quantize_model(tmp_path / "gpt2", INT8)
    assert quantized.compression_ratio > 1.5
    assert "transformer.h.0.attn.c_attn" in quantized.validation_metrics["layer_errors"]
    assert quantized.validation_metrics["worst_layer_output_error"] < 0.02
    result = manager.benchmark_quantized_model(quantized, TEXTS, num_iterations=1)
    assert abs(result.accuracy_loss) < 0.05


def test_gptq_of_a_folder_the_project_has_not_seen(manager, tmp_path):
    pytest.importorskip("gptqmodel")
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=1, intermediate_size=256, num_attention_heads=2,
        vocab_size=300, max_position_embeddings=256, initializer_range=0.15,
    )  # fmt: skip
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    result = manager.quantize_model(
        str(tmp_path / "llama"), QuantizationMethod.GPTQ, config_name="gptq_4bit"
    )
    assert result.compression_ratio > 1.5
    checkpoint = next(Path(result.quantized_model_path).rglob("config.json"))
    written = json.loads(checkpoint.read_text())["quantization_config"]
    assert (written["quant_method"], written["bits"], written["group_size"]) == ("gptq", 4, 128)


def test_comparison_runs_all_that_can_run(manager, source):
    short = ["too short to calibrate with"]
    comparison = manager.compare_quantization_methods(
        source, TEXTS, calibration_data=short, num_iterations=3
    )
    everything = [*comparison.results, *comparison.unavailable, *comparison.failed]
    assert sorted(everything) == sorted(method.value for method in QuantizationMethod)
    assert {"none", "int8"} <= comparison.results.keys()
    # Never a number for what did not run, always a reason.
    for method in (QuantizationMethod.GPTQ, QuantizationMethod.AWQ, QuantizationMethod.STATIC):
        assert {**comparison.failed, **comparison.unavailable}[method]
    for result in comparison.results.values():
        assert result.speedup_factor is not None
        metrics = result.validation_metrics
        assert (
            metrics["baseline_perplexity"]
            == (comparison.results["none"].validation_metrics["perplexity"])
        )
    assert comparison.pareto_front
    assert comparison.best_by_axis["memory_ratio"].name != "none"
    assert comparison.balanced.name in comparison.results
    assert comparison.ranking.unranked == {}
    json.dumps(comparison.to_json(), allow_nan=False)


def test_calibration_text_is_real_recorded_and_long_enough(tmp_path):
    store = ArtifactStore(tmp_path)
    drawn = standard_library(store, 20, 1, "code")
    assert len(drawn.texts) == len(set(drawn.texts)) == 20
    assert drawn == standard_library(store, 20, 1, "code")
    facts = drawn.facts(byte_tokenizer(), 512)
    assert facts["num_texts"] == 20
    assert facts["num_tokens"] >= facts["num_characters"] > 1000
    assert "standard library" in facts["source"]
    assert facts["blake2b"] == given(list(drawn.texts)).digest
    assert given(["ab", "c"]).digest != given(["a", "bc"]).digest
    with pytest.raises(ConfigError, match="calibration_data: got 5 tokens in 1 texts; expected at"):
        given(["short"]).facts(byte_tokenizer(), 512)


def test_default_folder_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("CAPIBENCH_HOME", str(tmp_path))
    assert QuantizationManager().artifacts_dir == tmp_path / "quantization"
    assert not list(tmp_path.iterdir())


def test_levels_and_methods_name_presets():
    assert [level.bits for level in QuantizationLevel] == [4, 8, 16, 32, 64]
    assert [level.preset for level in QuantizationLevel] == [
        "int4", "int8", "float16", "float32", "float64",
    ]  # fmt: skip
    assert [method.value for method in QuantizationMethod] == [
        method.name.lower() for method in QuantizationMethod
    ]
    presets = [method.default_preset for method in QuantizationMethod]
    presets += [level.preset for level in QuantizationLevel]
    assert set(presets) <= set(preset_names())
    assert math.log2(QuantizationLevel.HIGH.bits) == 5


def test_public_names_are_lazy():
    assert sorted(capibench.quantization.__all__) == capibench.quantization.__all__
    for name in capibench.quantization.__all__:
        assert getattr(capibench.quantization, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Quantizer'"):
        _ = capibench.quantization.Quantizer
    program = """
import sys
import capibench.quantization as q
assert q.QuantizationMethod.GPTQ.default_preset == "gptq_4bit"
assert not {"torch", "transformers", "scipy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_parts_of_a_setting_may_be_given_alone():
    _, settings, made = build_preset(
        QuantizationMethod.INT4, None, {"feedback": {"damp_percent": 0.02}}
    )
    _, plain, _ = build_preset(QuantizationMethod.INT4, None, None)
    assert settings["feedback"] == {**plain["feedback"], "damp_percent": 0.02}
    assert made.feedback.damp_percent == 0.02
    for wrong, message in (
        ({"feedback": {"damp": 1}}, "quantization.feedback.damp: unknown key"),
        ({"feedback": {"_target_": plain["_target_"]}}, "quantization.feedback"),
        ([1], "custom_config: got .*; expected a mapping"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_preset(QuantizationMethod.INT4, None, wrong)
