"""Calibrated activations: what is observed, which range is chosen, and what each setting does."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import NUM_POSITIONS, load_tiny, save_tiny
from torch import nn

from capibench.errors import ConfigError
from capibench.quantization.activation_ranges import NUM_BINS, Histogram, choose_range, observe
from capibench.quantization.static import StaticInt8

WORDS = ["Returns", "the", "number", "of", "items", "raises", "ValueError", "when", "path"]
LAYER = "model.layers.1.mlp.down_proj"


def texts(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=12)) for _ in range(count)]


def static(**changes):
    values = {
        "kernel": "auto", "range": "max", "percentile": None, "num_samples": 8,
        "sequence_tokens": 32, "seed": 0, "skip_modules": ["lm_head"],
    }  # fmt: skip
    return StaticInt8(**{**values, **changes})


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def scales(source, folder, given=None, **changes):
    """input_scale of every layer, in one array."""
    folder.mkdir()
    static(**changes).quantize(load_tiny(source), texts() if given is None else given, folder)
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name] for name in sorted(tensors) if name.endswith("input_scale")])


class Shared(nn.Module):
    """Two layers that see the same input, and one that sees what they made of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third, self.unused = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, input_ids, use_cache):
        x = torch.stack([input_ids.float()] * 4, dim=-1) - 3
        return self.third(self.first(x).relu() + self.second(x) * 0)


def test_every_input_is_counted_between_its_bounds():
    torch.manual_seed(0)
    module = Shared()
    layers = {name: module.get_submodule(name) for name in ("first", "second", "third")}
    windows = torch.tensor([[1, 2, 9], [4, 3, 3]])
    found = observe(module, layers, windows)
    assert list(found) == ["first", "second", "third"]
    for name in ("first", "second"):
        assert (found[name].low, found[name].high) == (-2.0, 6.0)
        assert found[name].counts.sum() == 6 * 4
    hidden = torch.cat([module.first(torch.full((1, 4), float(i - 3))) for w in windows for i in w])
    # Row by row is another product: four terms and a bias of 12.5 at most in all, rounded on both
    # sides, 2 x 5 x 2^-24 x 12.5.
    assert found["third"].high == pytest.approx(hidden.relu().max().item(), abs=1e-5)
    assert found["third"].low == 0
    assert found["third"].counts.sum() == hidden.numel()


def test_layers_that_calibration_cannot_judge():
    module = Shared()
    with pytest.raises(ValueError, match="calibration: no text reached unused"):
        observe(module, {"unused": module.unused}, torch.tensor([[1, 2]]))
    module.first.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match="calibration: the inputs of third reach"):
        observe(module, {"third": module.third}, torch.tensor([[1, 2]]))
    assert not module.third._forward_pre_hooks


def histogram(values):
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    counts, _ = np.histogram(values, bins=NUM_BINS, range=(low, high))
    return Histogram(float(low), float(high), counts.astype(np.float64))


def heavy_tailed(seed=0):
    return np.random.default_rng(seed).standard_t(df=3, size=200_000)


def quantized(values, chosen):
    q = np.clip(np.rint(values / chosen.scale) + chosen.zero_point, -128, 127)
    return (q - chosen.zero_point) * chosen.scale


def test_the_whole_range_holds_every_value():
    for values in (heavy_tailed(), heavy_tailed(1) + 40, -np.abs(heavy_tailed(2))):
        chosen = choose_range(histogram(values), "max", None, torch.float32)
        assert np.abs(quantized(values, chosen) - values).max() <= 1.01 * chosen.scale
        assert quantized(np.zeros(1), chosen) == 0


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_a_percentile_clips_as_many_as_it_says(percentile):
    values = heavy_tailed()
    chosen = choose_range(histogram(values), "percentile", percentile, torch.float32)
    low = (-128 - chosen.zero_point) * chosen.scale
    high = (127 - chosen.zero_point) * chosen.scale
    clipped = ((values < low) | (values > high)).mean()
    assert clipped == pytest.approx(1 - percentile / 100, rel=0.15)


@pytest.mark.parametrize("shift", [0.0, 5.0, -50.0])
def test_the_least_squared_error_is_no_more_than_that_of_other_ranges(shift):
    values = heavy_tailed() + shift
    found = histogram(values)

    def error(method, percentile=None):
        chosen = choose_range(found, method, percentile, torch.float32)
        return np.square(quantized(values, chosen) - values).mean()

    best = error("mse")
    assert best <= 1.01 * error("max")
    if shift == 0:
        assert best < 0.8 * error("max")
        assert best < min(error("percentile", p) for p in (90.0, 99.0, 99.9))


def test_a_layer_that_saw_only_zeros():
    found = Histogram(0.0, 0.0, np.zeros(NUM_BINS))
    for method, percentile in (("max", None), ("mse", None), ("percentile", 99.0)):
        chosen = choose_range(found, method, percentile, torch.bfloat16)
        assert (chosen.scale, chosen.zero_point) == (1.0, 0)


def test_scales_are_rounded_to_what_is_stored():
    chosen = choose_range(histogram(heavy_tailed()), "max", None, torch.bfloat16)
    assert float(torch.tensor(chosen.scale).bfloat16()) == chosen.scale


def test_every_setting_has_its_effect(source, tmp_path):
    whole = scales(source, tmp_path / "max")
    assert torch.equal(scales(source, tmp_path / "again"), whole)
    narrow = scales(source, tmp_path / "narrow", range="percentile", percentile=99.0)
    narrower = scales(source, tmp_path / "narrower", range="percentile", percentile=95.0)
    assert (narrower < narrow).all()
    assert (narrow < whole).all()
    assert (scales(source, tmp_path / "mse", range="mse") <= whole).all()
    assert not torch.equal(scales(source, tmp_path / "seed", seed=1), whole)
    assert not torch.equal(scales(source, tmp_path / "long", sequence_tokens=64), whole)
    assert not torch.equal(scales(source, tmp_path / "text", given=texts(seed=5)), whole)
    # The same first draws and more: a range can only grow.
    more = scales(source, tmp_path / "more", num_samples=30)
    assert (more >= 0.999 * whole).all()
    assert not torch.equal(more, whole)


def test_skipped_layers_keep_their_weights(source, tmp_path):
    method = static(skip_modules=["lm_head", "down_proj"])
    method.quantize(load_tiny(source), texts(), tmp_path)
    assert f"{LAYER}.input_scale" not in load_file(tmp_path / "model.safetensors")
    model, kernel = method.load(load_tiny(source), tmp_path)
    assert "12 layers" in kernel
    assert isinstance(model.module.get_submodule(LAYER), nn.Linear)


def test_calibration_text_that_is_too_short(source, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"quantization\.num_samples: got 8 of 32 tokens; expected at most 0",
    ):
        static().quantize(load_tiny(source), [], tmp_path)
    with pytest.raises(ConfigError, match=r"got 97; expected at most the model's 96 positions"):
        static(sequence_tokens=NUM_POSITIONS + 1).quantize(load_tiny(source), texts(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentile": 99.0}, "percentile: got 99.0 with range=max"),
        ({"range": "percentile"}, "percentile: got None with range=percentile"),
        ({"range": "percentile", "percentile": 50.0}, "percentile: got 50.0; expected above 50"),
        ({"range": "percentile", "percentile": 100.5}, "percentile: got 100.5"),
        ({"num_samples": 0}, "num_samples: got 0; expected at least 1"),
        ({"sequence_tokens": 1}, "sequence_tokens: got 1; expected at least 2"),
        ({"seed": -1}, "seed: got -1; expected at least 0"),
    ],
)
def test_settings_that_are_none(changes, message):
    with pytest.raises(ValueError, match=message):
        static(**changes)


def test_the_choice_lists_its_settings(choice):
    method = choice("quantization", "static_int8")
    assert method.calibrated is True
    params = method.params()
    assert params["method"] == "static"
    assert set(params) >= {"range", "percentile", "num_samples", "sequence_tokens", "seed"}
    with pytest.raises(ConfigError, match=r"quantization\.range"):
        choice("quantization", "static_int8", range="entropy")
