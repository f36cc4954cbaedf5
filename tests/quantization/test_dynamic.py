"""Activations quantized as they come: no calibration, no influence of neighbours."""

import pytest
import torch
from tiny_llama import load_tiny, save_tiny

from capibench.quantization.dynamic import DynamicInt8

DYNAMIC = DynamicInt8(kernel="auto", skip_modules=["lm_head"])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def test_calibration_text_changes_nothing(source, tmp_path):
    assert DynamicInt8.calibrated is False
    for number, texts in enumerate(([], ["text that is not read"])):
        (tmp_path / str(number)).mkdir()
        DYNAMIC.quantize(load_tiny(source), texts, tmp_path / str(number))
    first, second = (tmp_path / str(n) / "model.safetensors" for n in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_an_outlier_in_one_text_leaves_the_others_of_the_batch_alone(source, tmp_path):
    DYNAMIC.quantize(load_tiny(source), [], tmp_path)
    model, _ = DYNAMIC.load(load_tiny(source), tmp_path)
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 20, 128, generator=g)
    spoilt = hidden.clone()
    spoilt[0] *= 1000
    block = model.module.model.layers[0].mlp
    with torch.no_grad():
        calm, loud = block(hidden), block(spoilt)
    assert torch.equal(calm[1:], loud[1:])
    assert not torch.equal(calm[0], loud[0])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_size_of_activations_does_not_matter(source, tmp_path, scale):
    DYNAMIC.quantize(load_tiny(source), [], tmp_path)
    model, _ = DYNAMIC.load(load_tiny(source), tmp_path)
    layer = model.module.model.layers[0].self_attn.q_proj
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ layer.dequantized_weight().double().T
    error = (layer(x * scale).double() / scale - exact).norm() / exact.norm()
    assert error < 0.03


def test_the_choice_lists_its_settings(choice):
    params = choice("quantization", "dynamic_int8").params()
    assert params["method"] == "dynamic"
    assert params["skip_modules"] == "lm_head"
