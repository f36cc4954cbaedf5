"""Rounding: the grid, the bytes, the order of bits and groups, and the way to disk and back."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_llama import load_tiny, save_tiny
from torch import nn

from capibench.errors import ConfigError, DataError
from capibench.quantization import tensor_files
from capibench.quantization.bytes import file_bytes, resident_bytes
from capibench.quantization.none import NoQuantization
from capibench.quantization.packed_linear import PackedLinear
from capibench.quantization.round_to_nearest import RoundToNearest
from capibench.quantization.rounding import round_to_nearest


def method(
    bits=4, group_size=32, symmetric=True, skip=("lm_head",), packed_max_rows=8, feedback=None
):
    return RoundToNearest(bits, group_size, symmetric, feedback, list(skip), packed_max_rows)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def logits(model, num_tokens=20):
    ids = torch.arange(num_tokens)[None] * 11 % 256
    with torch.no_grad():
        return model.module(ids).logits


def relative_error(model, reference):
    return float((logits(model) - logits(reference)).norm() / logits(reference).norm())


@settings(max_examples=60)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([0, 16, 32]),
    symmetric=st.booleans(),
    spread=st.floats(1e-3, 1e3),  # below, float16 scales run out of digits
    seed=st.integers(0, 1000),
)
def test_every_weight_goes_to_the_closest_point_of_its_grid(
    bits, group_size, symmetric, spread, seed
):
    weight = torch.randn(7, 32, generator=torch.Generator().manual_seed(seed)) * spread
    weight[3] = 0
    got = round_to_nearest(weight, bits, group_size, symmetric)
    assert int(got.q.max()) < 2**bits
    assert got.scales.isfinite().all()
    assert (got.scales > 0).all()
    group = got.group_of_input
    points = torch.arange(2**bits)
    scales, zeros = got.scales.double()[:, group], got.zeros.double()[:, group]
    grid = (points - zeros[..., None]) * scales[..., None]
    best = (grid - weight.double()[..., None]).abs().amin(-1)
    error = (got.dequantized().double() - weight.double()).abs()
    assert (error <= best + 1e-5 * scales).all()
    assert (got.dequantized()[3] == 0).all()  # zeros stay zeros
    # The grid spans the group but for half a step at its ends and the rounding of scale and zero.
    assert (error <= scales * (1.01 + 2**bits * 2**-10)).all()


def test_asymmetric_grids_fit_one_sided_weights_better():
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) + 1
    errors = {
        symmetric: (round_to_nearest(weight, 4, 32, symmetric).dequantized() - weight).norm()
        for symmetric in (True, False)
    }
    assert errors[False] < 0.6 * errors[True]


def test_group_that_does_not_fit():
    with pytest.raises(
        ValueError, match="group_size: got 48; expected a divisor of in_features=64"
    ):
        round_to_nearest(torch.ones(2, 64), 4, 48, True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_checkpoint_holds_the_integers(source, tmp_path, bits, precision, symmetric):
    m = method(bits, symmetric=symmetric)
    m.quantize(load_tiny(source, precision), [], tmp_path)
    model, kernel = m.load(load_tiny(source, precision), tmp_path)
    original = dict(load_tiny(source, precision).module.named_modules())
    layers = {
        name: layer
        for name, layer in model.module.named_modules()
        if isinstance(layer, PackedLinear)
    }
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(
            layer.dequantized_weight(),
            round_to_nearest(original[name].weight, bits, 32, symmetric).dequantized(),
        ), name
    assert f"14 layers of {bits} bits" in kernel
    assert "lm_head (skip_modules)" in kernel
    tensors = load_file(tmp_path / "model.safetensors")
    words = tensors["model.layers.0.mlp.down_proj.qweight"]
    assert words.dtype == torch.int32
    assert words.numel() * 32 == 192 * 128 * bits
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["sym"]) == (bits, 32, symmetric)


def test_more_bits_and_smaller_groups_are_larger_and_better(source, tmp_path):
    reference = load_tiny(source)
    settings_ = [(2, 32), (3, 32), (4, 128), (4, 64), (4, 32), (8, 64)]
    disk, error, resident = [], [], []
    for bits, group_size in settings_:
        folder = tmp_path / f"{bits}-{group_size}"
        folder.mkdir()
        m = method(bits, group_size, skip=["lm_head", "down_proj"])
        m.quantize(reference, [], folder)
        model, _ = m.load(load_tiny(source), folder)
        disk.append(file_bytes(folder))
        resident.append(resident_bytes(model.module))
        error.append(relative_error(model, reference))
    assert disk == sorted(disk)
    assert len(set(disk)) == len(disk)
    assert error == sorted(error, reverse=True)
    assert resident[0] < resident[1]
    assert resident[2:] == sorted(resident[2:])


def test_bytes_are_counted_exactly(source, tmp_path):
    model = load_tiny(source)
    before = resident_bytes(model.module)
    linears = [
        m for n, m in model.module.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"
    ]
    after = sum(m.weight.numel() // 2 + m.weight.numel() // 32 * (4 + 1) for m in linears)
    method().quantize(model, [], tmp_path)
    quantized, _ = method().load(model, tmp_path)
    saved = sum(m.weight.nbytes for m in linears) - after
    assert resident_bytes(quantized.module) == before - saved


def test_a_new_process_computes_identical_logits(source, tmp_path):
    method().quantize(load_tiny(source), [], tmp_path)
    model, _ = method().load(load_tiny(source), tmp_path)
    program = """
import sys, numpy, torch
from pathlib import Path
from capibench.model.hf import HfModel
from capibench.quantization.round_to_nearest import RoundToNearest
torch.set_num_threads(1)
method = RoundToNearest(4, 32, True, None, ["lm_head"], 8)
model, _ = method.load(HfModel(sys.argv[1], "fp32").load(), Path(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], model.module(torch.arange(20)[None] * 11 % 256).logits.numpy())
"""
    out = tmp_path.parent / f"{tmp_path.name}.npy"
    subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path), str(out)], check=True
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = logits(model).numpy()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.load(out), here)


def test_quantizing_leaves_the_model_alone(source, tmp_path):
    model = load_tiny(source)
    before = logits(model)
    method().quantize(model, [], tmp_path)
    assert torch.equal(logits(model), before)


def test_a_large_checkpoint_is_written_in_shards(source, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 40_000)
    method().quantize(load_tiny(source), [], tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    model, _ = method().load(load_tiny(source), tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    monkeypatch.undo()
    method().quantize(load_tiny(source), [], whole)
    assert torch.equal(logits(model), logits(method().load(load_tiny(source), whole)[0]))


def test_a_model_in_its_own_precision_stays_in_its_file(source):
    """Reading weights straight from the mapped file is what lets a model larger than memory be
    quantized layer by layer."""
    model = load_tiny(source, "fp32")
    weight = model.module.model.layers[0].mlp.down_proj.weight
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    mapped = [line.split() for line in lines if "model.safetensors" in line]
    spans = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in mapped]
    assert any(low <= weight.data_ptr() < high for low, high in spans)


def test_group_that_does_not_divide_a_layer(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    model = load_tiny(save_tiny(source, ffn_size=200))
    with pytest.raises(ConfigError, match=r"quantization.group_size: got 32; .*in_features=200"):
        method().quantize(model, [], tmp_path)


def test_nothing_left_to_quantize(source, tmp_path):
    every = ["lm_head", *(f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down"))]
    with pytest.raises(ConfigError, match="leaves no linear layer"):
        method(skip=every).quantize(load_tiny(source), [], tmp_path)


def test_tied_head_can_be_quantized_too(source, tmp_path):
    m = method(8, skip=[])
    m.quantize(load_tiny(source), [], tmp_path)
    model, kernel = m.load(load_tiny(source), tmp_path)
    assert isinstance(model.module.lm_head, PackedLinear)
    assert "15 layers" in kernel
    assert "kept" not in kernel
    assert torch.equal(
        model.module.model.embed_tokens.weight,
        load_tiny(source).module.model.embed_tokens.weight.half().float(),  # stored in 16 bits
    )


@pytest.mark.parametrize("name", ["model.safetensors", "capibench.json"])
def test_missing_file(source, tmp_path, name):
    method().quantize(load_tiny(source), [], tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        method().load(load_tiny(source), tmp_path)


def test_one_flipped_bit(source, tmp_path):
    method().quantize(load_tiny(source), [], tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"model\.safetensors: damaged"):
        method().load(load_tiny(source), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 99})])
def test_malformed_seal(source, tmp_path, text):
    method().quantize(load_tiny(source), [], tmp_path)
    (tmp_path / "capibench.json").write_text(text)
    with pytest.raises(DataError, match=r"capibench\.json"):
        method().load(load_tiny(source), tmp_path)


def test_weights_of_another_model_or_method_are_refused(source, tmp_path):
    method().quantize(load_tiny(source), [], tmp_path)
    with pytest.raises(DataError, match="quantize this model anew"):
        method().load(load_tiny(source, "bf16"), tmp_path)
    with pytest.raises(DataError, match="method: made from int4, loaded for int8"):
        method(bits=8).load(load_tiny(source), tmp_path)


def test_wrong_settings():
    with pytest.raises(ValueError, match="packed_max_rows: got -1; expected at least 0"):
        method(packed_max_rows=-1)
    with pytest.raises(ValueError, match="group_size: got 12; expected a multiple of 8"):
        method(group_size=12)


def test_choices_and_their_parameters(choice):
    assert choice("quantization", "none").params() == {"method": "none"}
    assert choice("quantization", "int8").params()["method"] == "int8"
    assert choice("quantization", "int4").params()["method"] == "int4"
    assert choice("quantization", "int4").params()["feedback"] == "random_tokens"
    assert "feedback" not in choice("quantization", "int4", feedback=None).params()
    assert choice("quantization", "int4", bits=3).params()["method"] == "int3"
    with pytest.raises(ConfigError, match=r"quantization.bits: got 5; expected one of 2, 3, 4, 8"):
        choice("quantization", "int4", bits=5)


def test_no_quantization_is_the_model_itself(source, tmp_path):
    model = load_tiny(source)
    NoQuantization().quantize(model, [], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert NoQuantization().load(model, tmp_path) == (model, "aten::linear (float32)")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e6, "quantization.bits: 4 bits: model.layers.1.mlp.up_proj: got weights that need a "),
        (float("nan"), "model: got NaN or infinity in model.layers.1.mlp.up_proj"),
    ],
)
def test_weights_whose_scales_cannot_be_stored_are_refused(source, tmp_path, value, message):
    model = load_tiny(source)
    model.module.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(ConfigError, match=message):
        method().quantize(model, [], tmp_path)
    assert not list(tmp_path.iterdir())


def test_large_weights_that_are_kept_stay_finite(source, tmp_path):
    model = load_tiny(source)
    model.module.model.embed_tokens.weight.data[7, 7] = 1e6  # beyond float16
    method().quantize(model, [], tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(bool(t.isfinite().all()) for t in stored.values() if t.is_floating_point())
    assert float(stored["model.embed_tokens.weight"][7, 7]) == pytest.approx(1e6, rel=2**-8)
