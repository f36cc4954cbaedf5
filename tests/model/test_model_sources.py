"""Where models come from: the shipped one, a folder, a shape; and what is said when it fails."""

import json

import huggingface_hub
import pytest
import torch
from tiny_llama import load_tiny, save_tiny

from capibench.errors import ConfigError
from capibench.model.hf import HfModel
from capibench.model.packaged import PackagedModel
from capibench.model.precision import native_precision, torch_dtype
from capibench.model.random_shape import RandomShape
from capibench.quantization.bytes import resident_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def small_shape(**changes):
    values = {
        "hidden_size": 128, "num_layers": 2, "ffn_size": 256, "num_heads": 4, "num_kv_heads": 2,
        "vocab_size": 384, "max_positions": 64, "precision": "bf16", "seed": 3,
    }  # fmt: skip
    return RandomShape(**{**values, **changes})


def test_folder_gives_model_tokenizer_and_identity(folder):
    model = HfModel(str(folder), "fp32").load()
    assert model.meaningful
    assert model.dtype == "float32"
    assert model.module.config._attn_implementation == "sdpa"
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.tokenizer.decode(model.tokenizer("abc é")["input_ids"]) == "abc é"


@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_head_gets_hidden_states_without_gaps(folder, num_rows):
    """With gaps, PyTorch copies the whole head once per row."""
    module = load_tiny(folder).module
    strides = []

    def note(head, args):
        strides.append(args[0].stride())

    module.lm_head.register_forward_pre_hook(note)
    with torch.no_grad():
        module(torch.ones(num_rows, 9, dtype=torch.long), logits_to_keep=1)
    assert strides == [(128, 128, 1)]


def test_fingerprint_follows_weights_and_precision(folder, tmp_path):
    first = load_tiny(folder)
    assert load_tiny(folder).fingerprint == first.fingerprint
    assert load_tiny(folder, "bf16").fingerprint != first.fingerprint
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    assert load_tiny(save_tiny(tmp_path / "same")).fingerprint == first.fingerprint
    assert load_tiny(save_tiny(tmp_path / "other", seed=1)).fingerprint != first.fingerprint


def test_source_key_follows_files_and_precision_without_loading(folder, tmp_path):
    key = HfModel(str(folder), "fp32").source_key()
    json.dumps(key)
    assert HfModel(str(folder), "fp32").source_key() == key
    assert HfModel(str(folder), "bf16").source_key() != key
    assert HfModel(str(save_tiny(tmp_path, seed=1)), "fp32").source_key() != key


def test_auto_is_what_the_machine_multiplies_fast(folder):
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}[native_precision()]
    assert torch_dtype("auto") == wanted
    assert load_tiny(folder, "auto").module.dtype == wanted


def test_loaded_weights_are_counted_once_though_tied(folder):
    module = load_tiny(folder).module
    assert module.lm_head.weight.data_ptr() == module.model.embed_tokens.weight.data_ptr()
    parameters = sum(parameter.nbytes for parameter in module.parameters())  # yields tied ones once
    assert resident_bytes(module) == parameters + sum(buffer.nbytes for buffer in module.buffers())


def test_no_such_folder_and_no_hub_name():
    with pytest.raises(
        ConfigError, match=r"^model\.path: got '/no/such/folder'.*expected a folder"
    ):
        HfModel("/no/such/folder", "auto").load()


def test_hub_name_without_network_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"^model\.path: got 'nobody/nothing'") as caught:
        HfModel("nobody/nothing", "auto").load()
    assert "\n" not in str(caught.value)
    assert "network" in str(caught.value)


def test_folder_without_tokenizer(tmp_path):
    save_tiny(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=r"^model\.path: .*has no tokenizer; expected one of"):
        HfModel(str(tmp_path), "fp32").load()


def test_folder_without_model(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.path: .*no config\.json"):
        HfModel(str(tmp_path), "fp32").load()


def test_folder_with_truncated_weights(tmp_path):
    save_tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^model\.path: cannot load a causal model"):
        HfModel(str(tmp_path), "fp32").load()


def test_unknown_packaged_name_lists_the_known(choice):
    with pytest.raises(
        ConfigError, match=r"^model\.name: got 'giant'; expected a model that ships"
    ):
        PackagedModel("giant", "auto").load()


def test_shape_is_exact_deterministic_and_meaningless():
    module = small_shape().build_module()
    assert module.dtype == torch.bfloat16
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    attention = 128 * 128 * 2 + 128 * 64 * 2
    layer = attention + 3 * 128 * 256 + 2 * 128
    assert sum(p.numel() for p in module.parameters()) == 2 * layer + 2 * 384 * 128 + 128
    again, other = small_shape().build_module(), small_shape(seed=4).build_module()
    weight = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(module.get_parameter(weight), again.get_parameter(weight))
    assert not torch.equal(module.get_parameter(weight), other.get_parameter(weight))
    assert not RandomShape.meaningful


def test_shape_computes_what_transformers_itself_would():
    """The rotary tables are made apart from the weights; a slip there would go unnoticed."""
    ours = small_shape(precision="fp32").build_module()
    theirs = type(ours)(ours.config).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(24)[None] * 7 % 384
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_shape_source_key_is_its_recipe():
    assert small_shape().source_key() == small_shape().source_key()
    assert small_shape().source_key() != small_shape(seed=4).source_key()
    assert small_shape().source_key() != small_shape(precision="fp32").source_key()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers: got 0; expected at least 1"),
        ({"seed": -1}, "seed: got -1; expected at least 0"),
        ({"num_kv_heads": 3}, "num_kv_heads: got 3; expected a divisor of num_heads=4"),
        ({"num_heads": 6, "num_kv_heads": 6}, "num_heads: got 6; expected hidden_size=128"),
    ],
)
def test_wrong_shape(changes, message):
    with pytest.raises(ValueError, match=message):
        small_shape(**changes)


@pytest.mark.parametrize(
    ("name", "millions"), [("llama_1b_shape", 1100.0), ("llama_60m_shape", 59.8)]
)
def test_shipped_shapes_are_of_the_size_they_say_and_suit_every_kernel(choice, name, millions):
    shape = choice("model", name)
    for size in ("hidden_size", "ffn_size", "vocab_size"):
        assert getattr(shape, size) % 128 == 0, size
    kv_size = shape.hidden_size // shape.num_heads * shape.num_kv_heads
    layer = 2 * shape.hidden_size * (shape.hidden_size + kv_size + 1)
    layer += 3 * shape.hidden_size * shape.ffn_size
    total = shape.num_layers * layer + shape.hidden_size * (2 * shape.vocab_size + 1)
    assert round(total / 1e6, 1) == millions


def test_path_is_required(choice):
    with pytest.raises(ConfigError, match=r"^model\.path: "):
        choice("model", "hf", path=None)


def test_packaged_model_loads(choice):
    model = choice("model", "nano").load()
    assert model.meaningful
    assert len(model.tokenizer) <= model.module.config.vocab_size


def test_shape_takes_the_packaged_tokenizer():
    shape = small_shape(vocab_size=8320)
    model = shape.load()
    assert not model.meaningful
    assert model.fingerprint == shape.load().fingerprint
    assert model.fingerprint != small_shape(vocab_size=8320, seed=4).load().fingerprint


def test_vocabulary_smaller_than_the_tokenizer():
    with pytest.raises(ConfigError, match=r"^model\.vocab_size: got 384; expected at least"):
        small_shape().load()
