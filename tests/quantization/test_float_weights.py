"""Float types as levels of precision: real storage, real products, and back from disk."""

import pytest
import torch
from tiny_llama import load_tiny, save_tiny

from capibench.errors import DataError
from capibench.quantization.bytes import file_bytes, resident_bytes
from capibench.quantization.float_weights import FloatWeights


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def logits(model):
    with torch.no_grad():
        return model.module(torch.arange(20)[None] * 11 % 256).logits


@pytest.mark.parametrize(
    ("dtype", "width", "error"), [("float16", 2, 2e-2), ("float32", 4, 1e-5), ("float64", 8, 1e-5)]
)
def test_stored_and_computed_in_its_type(source, tmp_path, dtype, width, error):
    reference = load_tiny(source, "fp32")
    num_parameters = sum(p.numel() for p in reference.module.parameters())
    method = FloatWeights(dtype)
    method.quantize(reference, [], tmp_path)
    weights = file_bytes(tmp_path) - sum(
        p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".safetensors"
    )
    assert 0 < weights - num_parameters * width < 8000  # names and shapes
    model, kernel = method.load(load_tiny(source, "fp32"), tmp_path)
    assert kernel == f"aten::linear ({dtype})"
    assert model.dtype == dtype
    got = logits(model)
    assert got.dtype == getattr(torch, dtype)
    assert resident_bytes(model.module) >= num_parameters * width
    exact = logits(reference).double()
    assert (got.double() - exact).norm() / exact.norm() < error


def test_values_are_those_of_the_file(source, tmp_path):
    FloatWeights("float16").quantize(load_tiny(source, "fp32"), [], tmp_path)
    model, _ = FloatWeights("float16").load(load_tiny(source, "fp32"), tmp_path)
    original = load_tiny(source, "fp32").module.state_dict()
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, original[name].half()), name


def test_damage_is_seen(source, tmp_path):
    FloatWeights("float16").quantize(load_tiny(source), [], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        FloatWeights("float16").load(load_tiny(source), tmp_path)
