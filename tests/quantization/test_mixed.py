"""Mixed widths: within the budget, more bits where they matter, and back from disk."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import load_tiny, save_tiny

from capibench.errors import ConfigError
from capibench.quantization.mixed import Mixed
from capibench.quantization.packed_linear import PackedLinear
from capibench.quantization.rounding import round_to_nearest

TEXTS = ["def f(x): return x + 1", "Return the larger one of two numbers.", "and more words here"]


def method(mean_bits=6.0, max_kl=None, widths=(4, 8)):
    return Mixed(
        widths=list(widths),
        mean_bits=mean_bits,
        max_kl=max_kl,
        group_size=32,
        symmetric=True,
        sensitivity_tokens=60,
        sensitivity_window=20,
        skip_modules=["lm_head"],
        packed_max_rows=8,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    method().quantize(load_tiny(source), TEXTS, folder)
    return folder


def stored_bits(folder):
    """Of integers, scales and zero points per weight, from the file's own bytes."""
    tensors = load_file(folder / "model.safetensors")
    kinds = ("qweight", "qzeros", "scales")
    stored = sum(t.nbytes for name, t in tensors.items() if name.rpartition(".")[2] in kinds)
    bits = json.loads((folder / "capibench.json").read_text())["bits"]
    weights = sum(tensors[f"{n}.qweight"].numel() * 32 // b for n, b in bits.items())
    return stored * 8 / weights


def test_budget_of_bytes_is_met_and_used(artifact):
    assert 5.0 < stored_bits(artifact) <= 6.0


def test_more_bits_where_they_matter(artifact):
    facts = json.loads((artifact / "capibench.json").read_text())
    assert set(facts["bits"].values()) == {4, 8}
    single = facts["kl_of_each_layer_alone"]
    assert list(single) == sorted(single, key=lambda name: -single[name]["4"])
    assert facts["bits"][next(iter(single))] == 8
    gained = [single[n]["4"] - single[n]["8"] for n, b in facts["bits"].items() if b == 8]
    missed = [single[n]["4"] - single[n]["8"] for n, b in facts["bits"].items() if b == 4]
    assert sum(gained) / len(gained) > sum(missed) / len(missed)


def test_every_layer_has_its_integers(source, artifact):
    model, kernel = method().load(load_tiny(source), artifact)
    bits = json.loads((artifact / "capibench.json").read_text())["bits"]
    original = load_tiny(source).module
    for name, width in bits.items():
        layer = model.module.get_submodule(name)
        assert isinstance(layer, PackedLinear)
        weight = original.get_submodule(name).weight
        expected = round_to_nearest(weight, width, 32, True).dequantized()
        assert torch.equal(layer.dequantized_weight(), expected)
    assert "layers of 4 bits" in kernel
    assert "layers of 8 bits" in kernel


def test_budget_of_quality(source, tmp_path):
    method(mean_bits=None, max_kl=1e9).quantize(load_tiny(source), TEXTS, tmp_path)
    bits = json.loads((tmp_path / "capibench.json").read_text())["bits"]
    assert set(bits.values()) == {4}  # anything goes, so the smallest is enough


def test_budgets_that_cannot_be_met(source, tmp_path):
    with pytest.raises(ConfigError, match=r"quantization.mean_bits: got 3.0, which no choice"):
        method(mean_bits=3.0).quantize(load_tiny(source), TEXTS, tmp_path)
    with pytest.raises(ConfigError, match=r"quantization.max_kl: got 1e-12, which no choice"):
        method(mean_bits=None, max_kl=1e-12).quantize(load_tiny(source), TEXTS, tmp_path)
    with pytest.raises(ConfigError, match="no calibration text"):
        method().quantize(load_tiny(source), [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"mean_bits: got 5.0 with max_kl=0.1; expected exactly"):
        method(5.0, 0.1)
    with pytest.raises(ValueError, match=r"widths: got .* expected at least two"):
        method(widths=[4])
    with pytest.raises(ValueError, match="mean_bits: got -1; expected more than 0"):
        method(-1)
