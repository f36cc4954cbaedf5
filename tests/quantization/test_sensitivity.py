"""The damage of single layers: measured as if only they were quantized, and nothing left behind."""

import pytest
import torch
from tiny_llama import load_tiny, save_tiny
from torch import nn

from capibench.errors import ConfigError
from capibench.quantization.quality import compare, evaluate_pair
from capibench.quantization.rounding import round_to_nearest
from capibench.quantization.sensitivity import sensitivity

TEXTS = ["def f(x): return x + 1", "Return the larger one of the two.", "some more words here"]
NUM_TOKENS, WINDOW = 30, 24  # two windows, of two texts


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rounded(weight, bits):
    assert weight.dtype == torch.float32
    return round_to_nearest(weight, bits, group_size=32, symmetric=False).dequantized()


def found(model, **changes):
    arguments = {
        "bits": [4, 2],
        "skip_modules": ["lm_head"],
        "max_tokens": NUM_TOKENS,
        "window": WINDOW,
    }
    return sensitivity(model, TEXTS, rounded, **{**arguments, **changes})


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), tied=request.param)


@pytest.fixture
def model(folder):
    return load_tiny(folder)


def test_every_layer_alone_does_this_damage(folder, model):
    layers = found(model, skip_modules=[])
    linears = [n for n, m in model.module.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(layer.name for layer in layers) == sorted(linears)
    assert "lm_head" in linears
    for layer in (layers[0], layers[-1], next(x for x in layers if x.name == "lm_head")):
        for bits in (2, 4):
            twin = load_tiny(folder)
            module = twin.module.get_submodule(layer.name)
            weight = rounded(module.weight.detach(), bits)
            module.weight = nn.Parameter(weight, requires_grad=False)  # a tied embedding stays
            pair = evaluate_pair(model, twin, TEXTS, max_tokens=NUM_TOKENS, window=WINDOW)
            assert layer.kl[bits] == pytest.approx(compare(*pair)["kl_mean"]["value"], rel=1e-4)
        assert layer.num_weights == module.weight.numel()


def test_fewer_bits_hurt_more_and_the_worst_comes_first(model):
    layers = found(model)
    assert all(layer.kl[2] > layer.kl[4] > 0 for layer in layers)
    coarse = [layer.kl[2] for layer in layers]
    assert coarse == sorted(coarse, reverse=True)
    assert found(model) == layers


def test_the_model_is_as_before(model):
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.module.named_parameters()}
    found(model, skip_modules=[])

    def failing(weight, bits):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        sensitivity(model, TEXTS, failing, [4], [], max_tokens=NUM_TOKENS, window=WINDOW)
    after = dict(model.module.named_parameters())
    assert after.keys() == before.keys()
    for name, (pointer, values) in before.items():
        assert after[name].data_ptr() == pointer
        assert torch.equal(after[name], values)


def test_layers_are_skipped_by_name_or_last_part(model):
    skipped = ["lm_head", "q_proj", "model.layers.0.mlp.up_proj"]
    names = {layer.name for layer in found(model, bits=[4], skip_modules=skipped)}
    assert "model.layers.1.mlp.up_proj" in names
    assert not {n for n in names if n.endswith("q_proj") or n == skipped[2] or n == skipped[0]}


def test_what_cannot_be_measured(model):
    with pytest.raises(ValueError, match="bits: got none"):
        found(model, bits=[])
    everything = [n for n, m in model.module.named_modules() if isinstance(m, nn.Linear)]
    with pytest.raises(ConfigError, match="leaves no linear layer"):
        found(model, skip_modules=everything)
    with pytest.raises(ValueError, match="no window has two tokens"):
        sensitivity(model, [""], rounded, [4], [], max_tokens=NUM_TOKENS, window=WINDOW)
