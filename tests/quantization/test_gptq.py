"""GPTQ: integers that beat rounding where they were fitted, in a checkpoint that others read."""

import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import byte_tokenizer, load_tiny, save_tiny
from torch import nn
from transformers import CTRLConfig, CTRLLMHeadModel, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from capibench.config import build
from capibench.errors import ConfigError, DataError, MissingExtra
from capibench.quantization.calibration_tokens import choose_tokens
from capibench.quantization.gptq import Gptq
from capibench.quantization.quantized_checkpoint import read_quantized_checkpoint
from capibench.quantization.rounding import round_to_nearest
from capibench.quantization.sealed import SEAL

GROUP_SIZE = 64
TEXTS = [f"The {n}th of {n * n} numbers is {n * 7919 % 1000}, said nobody ever." for n in range(90)]
NODE = {
    "_target_": "capibench.quantization.gptq.Gptq",
    "bits": 4,
    "group_size": GROUP_SIZE,
    "symmetric": True,
    "desc_act": False,
    "act_group_aware": True,
    "damp_percent": 0.05,
    "mse": 0.0,
    "skip_modules": ["lm_head"],
    "num_samples": 32,
    "sequence_tokens": 64,
    "batch_size": 8,
    "seed": 0,
    "packed_max_rows": 16,
}


def gptq(**changes) -> Gptq:
    return build(NODE | changes, "quantization")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def quantized(source, tmp_path_factory):
    """Folder of the checkpoint, and the weights of the model before and after."""
    folder = tmp_path_factory.mktemp("gptq")
    model = load_tiny(source)
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    gptq().quantize(model, TEXTS, folder)
    return folder, before, model.module.state_dict()


def linears(module):
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head"
    }


def dequantized(model, folder):
    """`model` with the checkpoint's numbers in ordinary layers."""
    checkpoint = read_quantized_checkpoint(folder)
    own = model.module.state_dict()
    layers = linears(model.module)
    with torch.no_grad():
        for name, weight in checkpoint.layers:
            plain = weight.dequantized()
            own[f"{name}.weight"].copy_(plain.T if isinstance(layers[name], Conv1D) else plain)
        for name, tensor in checkpoint.others:
            own[name].copy_(tensor)
    return model


def logits(model):
    with torch.no_grad():
        return model.module(torch.arange(60)[None] * 7 % 256).logits


def test_the_model_stays_as_it_was(quantized):
    _, before, after = quantized
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_layer_of_the_decoder_is_stored_as_integers(quantized, source):
    checkpoint = read_quantized_checkpoint(quantized[0])
    layers = linears(load_tiny(source).module)
    assert checkpoint.bits == dict.fromkeys(layers, 4)
    for name, weight in checkpoint.layers:
        assert weight.q.dtype == torch.uint8
        assert int(weight.q.max()) <= 15
        assert weight.group_size == GROUP_SIZE
        assert weight.groups is None
        assert bool((weight.zeros == 8).all())
        assert weight.q.shape == layers[name].weight.shape
    sizes = {p.name: p.stat().st_size for p in quantized[0].glob("*.safetensors")}
    packed = sum(layer.weight.numel() for layer in layers.values()) // 2
    rest = 300 * 128 * 2  # the embedding in 16 bits
    assert packed + rest < sum(sizes.values()) < 1.35 * (packed + rest)


def test_it_changes_a_layers_output_less_than_rounding(quantized, source):
    model = load_tiny(source)
    seen = {}
    for name, layer in linears(model.module).items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, 1))
        )
    with torch.no_grad():
        model.module(choose_tokens(model, TEXTS, 32, 64, 0).ids)
    for name, weight in read_quantized_checkpoint(quantized[0]).layers:
        exact = linears(model.module)[name].weight.double()
        inputs = torch.cat(seen[name]).double()
        rounded = round_to_nearest(exact, 4, GROUP_SIZE, symmetric=True)
        ours, theirs = (
            float((inputs @ (w.dequantized().double() - exact).T).norm()) for w in (weight, rounded)
        )
        assert ours < 0.9 * theirs, name


def test_loaded_it_computes_with_the_stored_numbers(quantized, source):
    folder = quantized[0]
    model, kernel = gptq().load(load_tiny(source), folder)
    expected = logits(dequantized(load_tiny(source), folder))
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    assert "14 layers of 4 bits" in kernel
    assert "lm_head (skip_modules)" in kernel
    assert model.fingerprint != load_tiny(source).fingerprint


def test_the_seal_records_the_calibration(quantized, source):
    facts = json.loads((quantized[0] / SEAL).read_text())
    tokens = choose_tokens(load_tiny(source), TEXTS, 32, 64, 0)
    assert facts["calibration"] == tokens.facts()
    assert facts["calibration"]["num_samples"] == 32
    assert facts["calibration"]["blake2b"] != choose_tokens(
        load_tiny(source), TEXTS, 32, 64, 1
    ).facts()["blake2b"]  # fmt: skip


def test_a_damaged_checkpoint_or_one_of_another_model_is_refused(quantized, source, tmp_path):
    other = load_tiny(save_tiny(tmp_path, seed=1))
    with pytest.raises(DataError, match="quantize this model anew"):
        gptq().load(other, quantized[0])


@pytest.mark.parametrize(
    ("changes", "texts", "message"),
    [
        ({}, ["short"], r"quantization\.num_samples: got 32 of 64 tokens; expected at most 0"),
        ({"num_samples": 500}, TEXTS, r"num_samples: got 500 .* expected at most \d+"),
        ({"sequence_tokens": 97}, TEXTS, r"quantization\.sequence_tokens: got 97.*96 positions"),
        ({"group_size": 128}, TEXTS, r"group_size: got 128.*in_features=192 of model.*down_proj"),
        ({"skip_modules": ["lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                           "up_proj", "down_proj"]}, TEXTS, "leaves no linear layer"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(changes, texts, message, source, tmp_path):
    with pytest.raises(ConfigError, match=message):
        gptq(**changes).quantize(load_tiny(source), texts, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"bits": 5}, "quantization.bits"),
        ({"group_size": 48}, "quantization.group_size"),
        ({"damp_percent": 1.0}, "quantization.damp_percent"),
        ({"mse": -1.0}, "quantization.mse"),
        ({"desc_act": True}, "quantization.act_group_aware"),
        ({"num_samples": 0}, "quantization.num_samples"),
        ({"seed": -1}, "quantization.seed"),
        ({"packed_max_rows": -1}, "quantization.packed_max_rows"),
    ],
)
def test_a_setting_out_of_range_is_named(changes, key):
    with pytest.raises(ConfigError, match=f"^{key}: got"):
        gptq(**changes)


def test_without_gptqmodel_the_pip_command_is_given(source, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'capibench\[gptq\]'"):
        gptq().quantize(load_tiny(source), TEXTS, tmp_path)


@pytest.mark.slow
def test_an_architecture_that_gptqmodel_does_not_know_is_refused(tmp_path):
    config = CTRLConfig(n_embd=64, n_layer=1, n_head=2, dff=64, vocab_size=300, n_positions=96)
    CTRLLMHeadModel(config).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"got a model of type 'ctrl'.* expected one of .*llama"):
        gptq().quantize(load_tiny(tmp_path / "model"), TEXTS, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_gpt2_with_activation_order_and_a_zero_point(tmp_path):
    """Transposed weights, biases, scattered groups, format gptq_v2, a layer left out."""
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=300, n_positions=96)
    torch.manual_seed(0)
    source, folder = tmp_path / "model", tmp_path / "out"
    GPT2LMHeadModel(config).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    folder.mkdir()
    method = gptq(
        bits=3, group_size=32, symmetric=False, desc_act=True, act_group_aware=False,
        skip_modules=["lm_head", "transformer.h.1.mlp.c_proj"],
    )  # fmt: skip
    method.quantize(load_tiny(source), TEXTS, folder)
    checkpoint = read_quantized_checkpoint(folder)
    layers = linears(load_tiny(source).module)
    assert set(checkpoint.bits) == set(layers) - {"transformer.h.1.mlp.c_proj"}
    weights = dict(checkpoint.layers)
    assert any(weight.groups is not None for weight in weights.values())
    assert any(len(weight.zeros.unique()) > 1 for weight in weights.values())
    model, kernel = method.load(load_tiny(source), folder)
    assert "transformer.h.1.mlp.c_proj (skip_modules)" in kernel
    expected = logits(dequantized(load_tiny(source), folder))
    torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
    original = logits(load_tiny(source))
    assert float((expected - original).norm() / original.norm()) < 0.2
    file = tmp_path / "dequantized.safetensors"
    run_script(GPTQMODELS_OWN, str(folder), "gptq", str(file))
    assert_same_numbers(folder, load_file(file))


GPTQMODELS_OWN = """
import sys
import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file
awq = sys.argv[2] == "awq"
backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
model = GPTQModel.load(sys.argv[1], backend=backend, dtype=torch.float16, device="cpu").model
weights = {}
for name, m in model.named_modules():
    if hasattr(m, "qweight"):
        own = (
            dequantize_gemm(m.qweight, m.qzeros, m.scales, m.bits, m.group_size)
            if awq
            else m.dequantize_weight()
        )
        weights[name] = own.half().contiguous().clone()
save_file(weights, sys.argv[3])
"""


def assert_same_numbers(folder, theirs):
    """To the last bit, in the float16 that gptqmodel multiplies out in."""
    checkpoint = read_quantized_checkpoint(folder)
    assert set(theirs) == set(checkpoint.bits)
    for name, weight in checkpoint.layers:
        group = weight.group_of_input
        steps = (weight.q.int() - weight.zeros.int()[:, group]).half()
        ours = steps * weight.scales.half()[:, group]
        assert torch.equal(ours.T, theirs[name]), name


# gptqmodel compiles what multiplies out a layer; that takes longer here than all of the work.
READING = {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}


def run_script(script, *arguments):
    """Standard output of `script` in a process of its own; gptqmodel must not enter this one."""
    with TemporaryDirectory() as scratch:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, *arguments],
            env=os.environ | READING,
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig
folder, method, ids = sys.argv[1], sys.argv[2], torch.tensor([json.loads(sys.argv[4])])
own = GPTQConfig(4, backend="torch") if method == "gptq" else AwqConfig(4, backend="torch_awq")
for asked in (None, own):
    more = {} if asked is None else {"quantization_config": asked}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "qweight")}
    with torch.no_grad():
        generated = ids
        for _ in range(40):
            best = model(generated).logits[:, -1:].argmax(-1)
            generated = torch.cat([generated, best], 1)
    kernels = sorted({type(m).__name__ for m in layers.values()})
    print("FOUND", json.dumps([kernels, generated[0].tolist()]))
"""


PROMPT = [10, 60, 110, 160]


def read_elsewhere(folder, method, scratch):
    """Kernel classes and greedy tokens of the checkpoint in Transformers alone, in float32, with
    the kernel that it takes by itself, and with gptqmodel's plain one; and its weights as gptqmodel
    multiplies them out. In one process, since these imports take seconds; Transformers first."""
    file = scratch / "dequantized.safetensors"
    script = PLAIN + GPTQMODELS_OWN
    lines = run_script(script, str(folder), method, str(file), json.dumps(PROMPT)).splitlines()
    found = (line.removeprefix("FOUND ") for line in lines if line.startswith("FOUND "))
    return [json.loads(line) for line in found], load_file(file)


@pytest.fixture(scope="module")
def elsewhere(quantized, tmp_path_factory):
    return read_elsewhere(quantized[0], "gptq", tmp_path_factory.mktemp("elsewhere"))


def greedy(model, ids, num_tokens=40):
    generated = torch.tensor([ids])
    with torch.no_grad():
        for _ in range(num_tokens):
            best = model.module(generated).logits[:, -1:].argmax(-1)
            generated = torch.cat([generated, best], 1)
    return generated[0].tolist()


def follows(model, num_prompt, tokens, margin):
    """Whether each token is the model's own choice, or as good as that up to `margin` (logits)."""
    with torch.no_grad():
        scores = model.module(torch.tensor([tokens])).logits[0, num_prompt - 1 : -1]
    chosen = scores.gather(1, torch.tensor(tokens[num_prompt:])[:, None])[:, 0]
    return bool((scores.amax(1) - chosen <= margin).all())


@pytest.mark.slow
def test_plain_transformers_loads_it_and_writes_the_same_tokens(quantized, elsewhere, source):
    (fast, fast_tokens), (plain, tokens) = elsewhere[0]
    assert (fast, plain) == (["TorchAtenLinear"], ["TorchLinear"])
    served, _ = gptq().load(load_tiny(source), quantized[0])
    assert tokens == greedy(served, PROMPT)
    # PyTorch's int4 product is bfloat16 whatever the model's type: scales, inputs and outputs are
    # rounded to 3 digits, so that no choice of stored numbers makes it agree to the last token.
    assert follows(served, len(PROMPT), fast_tokens, margin=0.1)


@pytest.mark.slow
def test_gptqmodel_reads_the_same_numbers(quantized, elsewhere):
    assert_same_numbers(quantized[0], elsewhere[1])
