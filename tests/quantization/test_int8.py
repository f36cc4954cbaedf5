"""int8 weights: the numbers, the bytes, and the way to disk and back."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import load_tiny, save_tiny
from torch import nn

from capibench.errors import DataError
from capibench.quantization.bytes import file_bytes, resident_bytes
from capibench.quantization.int8 import Int8, Int8Linear, quantize_weight
from capibench.quantization.none import NoQuantization

INT8 = Int8(packed_max_rows=12, skip_modules=["lm_head"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture
def artifact(source, precision, tmp_path):
    INT8.quantize(load_tiny(source, precision), [], tmp_path)
    return tmp_path


def logits(model, num_tokens=20):
    ids = torch.arange(num_tokens)[None] * 11 % 256
    with torch.no_grad():
        return model.module(ids).logits


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 30),
    num_in=st.sampled_from([16, 48, 128]),
    num_out=st.integers(1, 40),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_product_equals_the_dequantized_one(rows, num_in, num_out, bias, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, num_in, generator=g).to(dtype)
    weight = torch.randn(num_out, num_in, generator=g).to(dtype)
    q, s = quantize_weight(weight)
    b = torch.randn(num_out, generator=g).to(dtype) if bias else None
    got = Int8Linear(q, s, b, packed_max_rows=12 if dtype == torch.bfloat16 else 0)(x)
    assert got.shape == (2, rows, num_out)
    assert got.dtype == dtype
    exact = x.double() @ (q.double() * s.double()[:, None]).T + (0 if b is None else b.double())
    size = x.double().abs() @ (q.double() * s.double()[:, None]).abs().T + 1
    unit = 2**-7 if dtype == torch.bfloat16 else 2**-20
    assert ((got.double() - exact).abs() <= unit * size).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 1000))
def test_every_weight_is_within_half_a_step(dtype, seed):
    weight = torch.randn(9, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight[3] = 0
    q, s = quantize_weight(weight)
    assert q.dtype == torch.int8
    assert s.dtype == dtype
    assert (s > 0).all()
    error = (q.double() * s.double()[:, None] - weight.double()).abs()
    # Where the stored scale was rounded down, the largest weight of a channel is clamped.
    assert (error <= (0.5 + 127 * 2**-8 * 0.5) * s.double()[:, None]).all()
    assert (q[3] == 0).all()


def test_logits_stay_close(source, artifact, precision):
    before = logits(load_tiny(source, precision)).double()
    model, _ = INT8.load(load_tiny(source, precision), artifact)
    after = logits(model).double()
    assert (before - after).norm() / before.norm() < 0.05


def test_bytes_are_counted_exactly(source, artifact, precision):
    model = load_tiny(source, precision)
    width = model.module.dtype.itemsize
    before = resident_bytes(model.module)
    linears = [
        m for n, m in model.module.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"
    ]
    saved = sum(m.weight.numel() * (width - 1) - m.out_features * width for m in linears)
    quantized, _ = INT8.load(model, artifact)
    assert resident_bytes(quantized.module) == before - saved
    buffers = sum(b.nbytes for n, b in model.module.named_buffers() if "rotary" in n)
    header = file_bytes(artifact) - (before - saved - buffers)
    assert 0 < header < 8000  # names and shapes; tied weights are stored once


def test_loading_again_gives_identical_logits(source, artifact, precision):
    first, _ = INT8.load(load_tiny(source, precision), artifact)
    second, _ = INT8.load(load_tiny(source, precision), artifact)
    assert torch.equal(logits(first), logits(second))
    assert torch.equal(logits(first, 5), logits(second, 5))
    assert first.fingerprint == second.fingerprint != load_tiny(source, precision).fingerprint


def test_a_new_process_computes_identical_logits(source, tmp_path):
    INT8.quantize(load_tiny(source, "bf16"), [], tmp_path)
    model, _ = INT8.load(load_tiny(source, "bf16"), tmp_path)
    program = """
import sys, numpy, torch
from pathlib import Path
from capibench.model.hf import HfModel
from capibench.quantization.int8 import Int8
torch.set_num_threads(1)
model, _ = Int8(12, ["lm_head"]).load(HfModel(sys.argv[1], "bf16").load(), Path(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], model.module(torch.arange(20)[None] * 11 % 256).logits.float().numpy())
"""
    out = tmp_path / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path), str(out)], check=True
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = logits(model).float().numpy()
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.load(out), here)


def test_quantizing_leaves_the_model_alone(source, tmp_path):
    model = load_tiny(source)
    before = logits(model)
    INT8.quantize(model, [], tmp_path)
    assert torch.equal(logits(model), before)


def test_kernel_says_what_multiplies(source, artifact, precision):
    _, kernel = INT8.load(load_tiny(source, precision), artifact)
    assert "14 layers" in kernel
    assert "lm_head (skip_modules)" in kernel
    assert ("aten::_weight_int8pack_mm for 1-12 rows" in kernel) == (precision == "bf16")


def test_layers_that_the_kernel_cannot_take_stay(tmp_path, caplog):
    source, folder = tmp_path / "model", tmp_path / "int8"
    source.mkdir()
    folder.mkdir()
    model = load_tiny(save_tiny(source, ffn_size=200))
    before = model.module.model.layers[0].mlp.down_proj.weight.clone()
    INT8.quantize(model, [], folder)
    assert "model.layers.0.mlp.down_proj stays in float32" in caplog.text
    loaded, kernel = INT8.load(load_tiny(source), folder)
    assert "12 layers" in kernel
    assert "model.layers.1.mlp.down_proj (in_features=200 is no multiple of 16)" in kernel
    assert torch.equal(loaded.module.model.layers[0].mlp.down_proj.weight, before)


def test_tied_head_can_be_quantized_too(source, tmp_path):
    everything = Int8(packed_max_rows=0, skip_modules=[])
    everything.quantize(load_tiny(source), [], tmp_path)
    reference = load_tiny(source)
    model, kernel = everything.load(load_tiny(source), tmp_path)
    assert isinstance(model.module.lm_head, Int8Linear)
    assert "15 layers" in kernel
    assert "kept" not in kernel
    assert torch.equal(
        model.module.model.embed_tokens.weight, reference.module.model.embed_tokens.weight
    )


@pytest.mark.parametrize("name", ["weights.safetensors", "int8.json"])
def test_missing_file(source, tmp_path, name):
    INT8.quantize(load_tiny(source), [], tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        INT8.load(load_tiny(source), tmp_path)


def test_one_flipped_bit(source, tmp_path):
    INT8.quantize(load_tiny(source), [], tmp_path)
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"weights\.safetensors: damaged"):
        INT8.load(load_tiny(source), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 99})])
def test_malformed_manifest(source, tmp_path, text):
    INT8.quantize(load_tiny(source), [], tmp_path)
    (tmp_path / "int8.json").write_text(text)
    with pytest.raises(DataError, match=r"int8\.json"):
        INT8.load(load_tiny(source), tmp_path)


def test_weights_of_another_model_are_refused(source, tmp_path):
    INT8.quantize(load_tiny(source), [], tmp_path)
    with pytest.raises(DataError, match="quantize this model anew"):
        INT8.load(load_tiny(source, "bf16"), tmp_path)


def test_choices_and_their_parameters(choice):
    assert choice("quantization", "none").params() == {"method": "none"}
    params = choice("quantization", "int8").params()
    assert params["method"] == "int8"
    assert params["skip_modules"] == "lm_head"
    with pytest.raises(ValueError, match="packed_max_rows: got -1; expected at least 0"):
        Int8(packed_max_rows=-1, skip_modules=[])


def test_no_quantization_is_the_model_itself(source, tmp_path):
    model = load_tiny(source)
    NoQuantization().quantize(model, [], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert NoQuantization().load(model, tmp_path) == (model, "aten::linear (float32)")
